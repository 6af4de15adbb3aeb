"""Loading of checkpoints with other names or other classes, by networks that can adapt them."""

import logging
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger(__name__)


def drop_other_classes(
    model: nn.Module, entries: Mapping[str, Tensor], class_layers: re.Pattern[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Entries without the layers of another number of classes, and the names of those.

    Only these are left out, so that fine-tuning on other classes starts in one line. Everything
    else stays, so that loading reports it.

    Args:
        model: The network that they are for; not changed.
        entries: Under the network's names.
        class_layers: Matches the names of layers whose rows follow from the number of classes.
    """
    expected = model.state_dict()
    dropped = [
        name
        for name, value in entries.items()
        if class_layers.match(name)
        and name in expected
        and len(value) != len(expected[name])
        and value.shape[1:] == expected[name].shape[1:]
    ]
    if dropped:
        logger.warning("the checkpoint has other classes: dropped %s", ", ".join(dropped))
    return {name: value for name, value in entries.items() if name not in set(dropped)}, dropped


def adapt_before_loading(
    model: Any, state_dict: MutableMapping[str, Any], prefix: str, *_: object
) -> None:
    """Hook before ``load_state_dict``: the network's ``adapt_checkpoint`` is applied.

    Args:
        model: The network; has ``adapt_checkpoint(state) -> (entries, dropped)``.
        state_dict: Changed in place.
        prefix: The network's own prefix in ``state_dict``.

    Raises:
        ValueError: The checkpoint is for something that the network cannot represent.
    """
    own = {name.removeprefix(prefix): name for name in state_dict if name.startswith(prefix)}
    entries, dropped = model.adapt_checkpoint({n: state_dict[full] for n, full in own.items()})
    for full in own.values():
        del state_dict[full]
    # The network's own layers stand in, so that strict loading still checks all the rest.
    current = model.state_dict() if dropped else {}
    entries.update({name: current[name] for name in dropped})
    state_dict.update({prefix + name: value for name, value in entries.items()})

"""Names of mmdetection's checkpoints of the six detectors, and ours.

A table per detector maps what follows the backbone; the backbone's own names are mapped as in
`wavevit.models.official`, and are the same in both for the ResNets.
"""

import logging
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from wavevit.models import official

logger = logging.getLogger(__name__)

# Patterns of official names and what ours are made of; the first match wins.
Renames = list[tuple[re.Pattern[str], str]]

_OFFICIAL_PARTS = ("neck.lateral_convs.", "bbox_head.", "rpn_head.", "roi_head.")
_BACKBONE = "backbone."
_OUR_BACKBONE = "network.backbone.body."

NECK: Renames = [
    (re.compile(r"^neck\.lateral_convs\.(\d+)\.conv\."), r"network.neck.laterals.\1."),
]
_TOWER: Renames = [
    (re.compile(r"^bbox_head\.cls_convs\.(\d+)\.conv\."), r"network.head.cls_tower.\1.conv."),
    (re.compile(r"^bbox_head\.reg_convs\.(\d+)\.conv\."), r"network.head.box_tower.\1.conv."),
    (re.compile(r"^bbox_head\.cls_convs\.(\d+)\.gn\."), r"network.head.cls_tower.\1.norm."),
    (re.compile(r"^bbox_head\.reg_convs\.(\d+)\.gn\."), r"network.head.box_tower.\1.norm."),
    (re.compile(r"^bbox_head\.scales\.(\d+)\.scale$"), r"network.head.scales.\1.scale"),
]
DENSE: Renames = [
    *_TOWER,
    (re.compile(r"^bbox_head\.(?:retina|gfl|atss)_cls\."), "network.head.cls_logits."),
    (re.compile(r"^bbox_head\.(?:retina|gfl|atss)_reg\."), "network.head.box_output."),
    (re.compile(r"^bbox_head\.atss_centerness\."), "network.head.centerness."),
]
_LATERAL = re.compile(r"^neck\.lateral_convs\.(\d+)\.")
_FPN_CONV = re.compile(r"^neck\.fpn_convs\.(\d+)\.conv\.(.*)$")
# Our layers whose rows follow from the number of classes, in any of the detectors.
_CLASS_LAYERS = re.compile(
    r"^(?:network\.head\.cls_logits|box_heads?(?:\.\d+)?\.fc_(?:cls|reg)|heads\.\d+\.fc_cls"
    r"|mask_heads?(?:\.\d+)?\.logits)\."
)
# Not learned: computed by our network.
_COMPUTED = re.compile(r"^bbox_head\.integral\.project$|^data_preprocessor\.")


def is_official(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has mmdetection's names.

    Args:
        state: Entries by name, without wrappings.
    """
    return any(name.startswith(_OFFICIAL_PARTS) for name in state)


def adapt(detector: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint's entries under our names, and what was left out.

    Only layers of another number of classes are left out, so that fine-tuning on other classes
    starts in one line. Everything else stays, so that loading reports it.

    Args:
        detector: The detector that they are for; not changed.
        state: Official or our names, without wrappings.

    Returns:
        The entries to load, and the names of those left out.

    Raises:
        ValueError: A wavelet buffer does not hold the Haar filters.
    """
    entries = our_state(detector, state) if is_official(state) else dict(state)
    expected = detector.state_dict()
    dropped = [
        name
        for name, value in entries.items()
        if _CLASS_LAYERS.match(name)
        and name in expected
        and len(value) != len(expected[name])
        and value.shape[1:] == expected[name].shape[1:]
    ]
    if dropped:
        logger.warning("the checkpoint has other classes: dropped %s", ", ".join(dropped))
    return {name: value for name, value in entries.items() if name not in set(dropped)}, dropped


def adapt_before_loading(
    detector: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: object
) -> None:
    """Hook before ``load_state_dict``: mmdetection's names and other classes load directly.

    Args:
        detector: The detector.
        state_dict: Changed in place.
        prefix: The detector's own prefix in ``state_dict``.

    Raises:
        ValueError: A wavelet buffer does not hold the Haar filters.
    """
    own = {name.removeprefix(prefix): name for name in state_dict if name.startswith(prefix)}
    entries, dropped = adapt(detector, {name: state_dict[full] for name, full in own.items()})
    for full in own.values():
        del state_dict[full]
    # The detector's own layers stand in, so that strict loading still checks all the rest.
    current = detector.state_dict() if dropped else {}
    entries.update({name: current[name] for name in dropped})
    state_dict.update({prefix + name: value for name, value in entries.items()})


def our_state(detector: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's entries under our names; what is not known keeps its own.

    Args:
        detector: The detector that they are for; not changed.
        state: Official names, without wrappings.

    Raises:
        ValueError: A wavelet buffer does not hold the Haar filters.
    """
    from wavevit.detection.official_two_stage import RENAMES as TWO_STAGE

    table = [*NECK, *DENSE, *TWO_STAGE.get(type(detector).__name__, [])]
    laterals = len({match[1] for name in state if (match := _LATERAL.match(name))})
    backbone = {
        name.removeprefix(_BACKBONE): value
        for name, value in state.items()
        if name.startswith(_BACKBONE)
    }
    body = detector.get_submodule(_OUR_BACKBONE.rstrip("."))
    adapted, _ = official.adapt(body, backbone)
    renamed = {_OUR_BACKBONE + name: value for name, value in adapted.items()}
    for name, value in state.items():
        if not name.startswith(_BACKBONE) and not _COMPUTED.match(name):
            renamed[_our_name(name, table, laterals)] = value
    return renamed


def _our_name(name: str, table: Renames, laterals: int) -> str:
    if match := _FPN_CONV.match(name):
        # One list there: the levels' own convolutions, then those of the extra levels.
        index = int(match[1])
        kind, index = ("outputs", index) if index < laterals else ("extra", index - laterals)
        return f"network.neck.{kind}.{index}.{match[2]}"
    for pattern, replacement in table:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return name

"""Which segmenter, backbone and sizes a checkpoint of mmsegmentation speaks of."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from wavevit.models.official_backbones import recognise_backbone

# An entry that only UPerNet has.
_MARK = "decode_head.fpn_bottleneck.conv.weight"
_DEFAULT_POOL_SIZES = 4


class Recognised(NamedTuple):
    """What `create_segmenter` needs to build the network that a checkpoint is for.

    Attributes:
        name: Segmenter.
        backbone: timm model name.
        num_classes: Classes.
        options: Further arguments: sizes that may differ from the published ones.
    """

    name: str
    backbone: str
    num_classes: int
    options: dict[str, Any]


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """The segmenter that a checkpoint of mmsegmentation is for.

    Args:
        state: Official names, without wrappings.

    Raises:
        ValueError: No UPerNet, or a backbone or size that we do not have.
    """
    if _MARK not in state:
        some = ", ".join([n for n in state if n.startswith("decode_head.")][:3] or list(state)[:3])
        raise ValueError(
            f"expected the weights of a UPerNet with mmsegmentation's names, got entries such as "
            f"{some}"
        )
    pools = {name.split(".")[2] for name in state if name.startswith("decode_head.psp_modules.")}
    if len(pools) != _DEFAULT_POOL_SIZES:
        # Their weights do not say to which sizes they pool.
        raise ValueError(
            f"expected a UPerNet that pools to 1, 2, 3 and 6 cells, got one of {len(pools)} pools"
        )
    options: dict[str, Any] = {"channels": len(state[_MARK])}
    auxiliary = state.get("auxiliary_head.convs.0.conv.weight")
    if auxiliary is None:
        options["auxiliary"] = False
    else:
        options["auxiliary_channels"] = len(auxiliary)
    name = "decode_head.conv_seg.weight"
    if name not in state:
        raise ValueError(f"the checkpoint lacks {name}: it is a part of a segmenter, or damaged")
    return Recognised("upernet", recognise_backbone(state), len(state[name]), options)

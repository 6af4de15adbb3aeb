"""Names of mmdetection's checkpoints of the six detectors, and ours.

A table per detector maps what follows the backbone; the backbone's own names are mapped as in
`wavevit.models.official_backbones`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from wavevit.models.adapted_loading import drop_other_classes
from wavevit.models.official_backbones import PREFIX as _BACKBONE
from wavevit.models.official_backbones import our_backbone

# Patterns of official names and what ours are made of; the first match wins.
Renames = list[tuple[re.Pattern[str], str]]

_OFFICIAL_PARTS = ("neck.lateral_convs.", "bbox_head.", "rpn_head.", "roi_head.")

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
_SCALE = re.compile(r"^bbox_head\.scales\.\d+\.scale$")
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
    return drop_other_classes(detector, entries, _CLASS_LAYERS)


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
    renamed = our_backbone(detector, state)
    for name, value in state.items():
        if not name.startswith(_BACKBONE) and not _COMPUTED.match(name):
            # Levels' factors are single numbers there.
            renamed[_our_name(name, table, laterals)] = (
                value.reshape(1) if _SCALE.match(name) else value
            )
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

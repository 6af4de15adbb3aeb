"""Which detector, backbone and sizes a checkpoint of mmdetection speaks of."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from wavevit.models.official_backbones import recognise_backbone

# An entry that only this detector has, the first of those that apply, by our name.
_MARKS = {
    "retinanet": "bbox_head.retina_cls.weight",
    "gfl": "bbox_head.gfl_cls.weight",
    "atss": "bbox_head.atss_cls.weight",
    "sparse_rcnn": "rpn_head.init_proposal_bboxes.weight",
    "cascade_mask_rcnn": "roi_head.bbox_head.0.fc_cls.weight",
    "mask_rcnn": "roi_head.bbox_head.fc_cls.weight",
}
_RETINA_ANCHORS = 9


class Recognised(NamedTuple):
    """What `create_detector` needs to build the network that a checkpoint is for.

    Attributes:
        name: Detector.
        backbone: timm model name.
        num_classes: Classes of objects.
        options: Further arguments: sizes that may differ from the published ones.
    """

    name: str
    backbone: str
    num_classes: int
    options: dict[str, Any]


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """The detector that a checkpoint of mmdetection is for.

    Args:
        state: Official names, without wrappings.

    Raises:
        ValueError: None of the six detectors, or a backbone or size that we do not have.
    """
    name = next((name for name, mark in _MARKS.items() if mark in state), None)
    if name is None:
        some = ", ".join(list(state)[:3])
        raise ValueError(
            f"expected the weights of {', '.join(_MARKS)} with mmdetection's names, got entries "
            f"such as {some}"
        )
    rows = len(state[_MARKS[name]]) if name != "sparse_rcnn" else 0
    options: dict[str, Any] = {"fpn_channels": len(_entry(state, "neck.fpn_convs.0.conv.weight"))}
    if name in ("retinanet", "gfl", "atss"):
        options |= _tower_sizes(state)
    if name == "retinanet":
        num_anchors = len(_entry(state, "bbox_head.retina_reg.weight")) // 4
        if num_anchors != _RETINA_ANCHORS:
            raise ValueError(f"expected a RetinaNet of 9 anchors a cell, got {num_anchors}")
        num_classes = rows // num_anchors
    elif name == "gfl":
        num_classes = rows
        options["max_distance"] = len(_entry(state, "bbox_head.gfl_reg.weight")) // 4 - 1
    elif name == "atss":
        num_classes = rows
    elif name == "sparse_rcnn":
        num_classes = len(_entry(state, "roi_head.bbox_head.0.fc_cls.weight"))
        options["num_proposals"] = len(state[_MARKS[name]])
    else:
        num_classes = rows - 1  # the last one is background
        options["masks"] = any(entry.startswith("roi_head.mask_head.") for entry in state)
    return Recognised(name, recognise_backbone(state), num_classes, options)


def _entry(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"the checkpoint lacks {name}: it is a part of a detector, or damaged")
    return state[name]


def _tower_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    convs = [n for n in state if re.match(r"^bbox_head\.cls_convs\.\d+\.conv\.weight$", n)]
    sizes = {"num_tower_convs": len(convs)}
    return sizes | ({"head_channels": len(state[convs[0]])} if convs else {})

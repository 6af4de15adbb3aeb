"""Detectors by name."""

import importlib
from typing import Any

from torch import nn

from wavevit.detection.detector import Detector
from wavevit.models.options import check_options
from wavevit.models.pyramid_backbone import BatchNormMode, PyramidBackbone

# Module and class; imported when asked for, so that importing the package stays quick.
DETECTORS = {
    "retinanet": ("wavevit.detection.retinanet", "RetinaNet"),
    "atss": ("wavevit.detection.atss", "ATSS"),
    "gfl": ("wavevit.detection.gfl", "GFL"),
    "mask_rcnn": ("wavevit.detection.mask_rcnn", "MaskRCNN"),
    "cascade_mask_rcnn": ("wavevit.detection.cascade_mask_rcnn", "CascadeMaskRCNN"),
    "sparse_rcnn": ("wavevit.detection.sparse_rcnn", "SparseRCNN"),
}


def detector_class(name: str) -> type[Detector]:
    """The class behind a name.

    Args:
        name: One of `DETECTORS`.

    Raises:
        ValueError: There is no such detector.
    """
    if name not in DETECTORS:
        raise ValueError(f"expected a detector of {', '.join(DETECTORS)}, got {name!r}")
    module, class_name = DETECTORS[name]
    found: type[Detector] = getattr(importlib.import_module(module), class_name)
    return found


def create_detector(
    name: str,
    backbone: str | nn.Module,
    *,
    num_classes: int,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    batch_norm: BatchNormMode = "affine_frozen",
    frozen_stages: int = 0,
    grad_checkpointing: bool = False,
    **options: Any,
) -> Detector:
    """A detector on any timm network that gives maps at strides 4, 8, 16 and 32.

    Args:
        name: "retinanet", "atss", "gfl", "mask_rcnn", "cascade_mask_rcnn" or "sparse_rcnn".
        backbone: timm model name, or a network built with ``features_only=True``.
        num_classes: Classes of objects; background is not one of them.
        pretrained: Loads timm's weights of the backbone.
        drop_path_rate: Stochastic depth of the backbone's last block; the published detectors
            have 0.1.
        batch_norm: Of the backbone: "trained", "affine_frozen" (as published: statistics move)
            or "frozen" (statistics too); see `PyramidBackbone`.
        frozen_stages: So many of the backbone's four stages are not trained.
        grad_checkpointing: Recomputes the backbone's activations in the backward pass.
        **options: Further arguments of the detector's class, such as ``fpn_channels`` or
            ``score_threshold``; their defaults are the published ones.

    Raises:
        ValueError: Unknown detector, backbone or option, or values that do not fit.
    """
    cls = detector_class(name)
    check_options(name, cls, options)
    body = PyramidBackbone(
        backbone,
        pretrained=pretrained,
        drop_path_rate=drop_path_rate,
        batch_norm=batch_norm,
        frozen_stages=frozen_stages,
        grad_checkpointing=grad_checkpointing,
    )
    return cls(body, num_classes, **options)  # type: ignore[arg-type]

"""Segmenters by name."""

import importlib
from typing import Any

from torch import nn

from wavevit.models.options import check_options
from wavevit.models.pyramid_backbone import BatchNormMode, PyramidBackbone
from wavevit.segmentation.segmenter import Segmenter

# Module and class; imported when asked for, so that importing the package stays quick.
SEGMENTERS = {"upernet": ("wavevit.segmentation.upernet", "UPerNet")}


def segmenter_class(name: str) -> type[Segmenter]:
    """The class behind a name.

    Args:
        name: One of `SEGMENTERS`.

    Raises:
        ValueError: There is no such segmenter.
    """
    if name not in SEGMENTERS:
        raise ValueError(f"expected a segmenter of {', '.join(SEGMENTERS)}, got {name!r}")
    module, class_name = SEGMENTERS[name]
    found: type[Segmenter] = getattr(importlib.import_module(module), class_name)
    return found


def create_segmenter(
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
) -> Segmenter:
    """A segmenter on any timm network that gives maps at strides 4, 8, 16 and 32.

    Args:
        name: "upernet".
        backbone: timm model name, or a network built with ``features_only=True``.
        num_classes: Classes, 1 to 255.
        pretrained: Loads timm's weights of the backbone.
        drop_path_rate: Stochastic depth of the backbone's last block; the published segmenters
            have 0.1 (S) and 0.3 (B).
        batch_norm: Of the backbone: "trained", "affine_frozen" (as published: statistics move)
            or "frozen" (statistics too); see `PyramidBackbone`. The heads' are trained.
        frozen_stages: So many of the backbone's four stages are not trained.
        grad_checkpointing: Recomputes the backbone's activations in the backward pass.
        **options: Further arguments of the segmenter's class, such as ``channels`` or
            ``dice_weight``; their defaults are the published ones.

    Raises:
        ValueError: Unknown segmenter, backbone or option, or values that do not fit.
    """
    cls = segmenter_class(name)
    check_options(name, cls, options)
    body = PyramidBackbone(
        backbone,
        pretrained=pretrained,
        drop_path_rate=drop_path_rate,
        batch_norm=batch_norm,
        frozen_stages=frozen_stages,
        grad_checkpointing=grad_checkpointing,
    )
    return cls(body, num_classes, **options)

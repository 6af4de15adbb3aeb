"""Exact inference form: norms folded into the linear maps beside them."""

from typing import TypeVar

from timm.utils import reparameterize_model
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model) -> Model:
    """A copy for inference: BatchNorm, and LayerNorm affine where exact, folded into neighbours.

    Outputs equal the model's in evaluation mode up to rounding. The copy is in evaluation mode and
    cannot be trained further or loaded with unfused weights. Networks of timm that know how to
    re-parameterise themselves do so too; ``timm.utils.reparameterize_model`` does the same.

    Args:
        model: Any network, Wave-ViT or one that contains it.
    """
    fused: Model = reparameterize_model(model).eval()
    return fused

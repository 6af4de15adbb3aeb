"""The classifier applied at every location of its last feature map, for any network of timm.

Legend: B batch, C channels, H W rows and columns of a map, N tokens, K classes, L locations.
"""

from typing import Any

import torch
from torch import Tensor, nn

from wavevit.models.feature_layout import Layout, locate, name_of, no_map, num_prefix_tokens
from wavevit.models.wave_vit import WaveVit

_LOCATIONS_AT_ONCE = 2048
"""A head may widen each location a hundredfold (VGG's), so it sees this many at a time."""


@torch.no_grad()
def spatial_logits(model: nn.Module, images: Tensor) -> Tensor:
    """The classifier applied at every location of its last feature map.

    Each location becomes an image of its own, whose map or sequence is that location throughout,
    so that every way of pooling leaves it as it is. With average pooling and a linear classifier
    the mean over all locations is the classifier's own answer. Token-label networks (Wave-ViT,
    VOLO) have a second classifier that was trained on locations: theirs is what comes out.

    Args:
        model: A classifier of timm in evaluation mode.
        images: ``(B, 3, H, W)``, normalised as the classifier expects.

    Returns:
        Logits ``(B, K, rows, columns)`` without gradient.

    Raises:
        ValueError: In training mode, or a network without a spatial map or without a classifier.
    """
    name = name_of(model)
    if model.training:
        raise ValueError(f"spatial logits need {name} in evaluation mode; call eval() first")
    for part in ("forward_features", "forward_head"):
        if not callable(getattr(model, part, None)):
            raise no_map(name, f"it has no {part}(), as timm's classifiers do")
    features = model.forward_features(images)  # type: ignore[operator]
    located, layout = locate(model, features, (images.shape[-2], images.shape[-1]))
    B, rows, columns, _ = located.shape
    if isinstance(model, WaveVit) and model.aux_head is not None:
        logits = model._token_logits(features).flatten(0, 1)
    else:
        logits = _classify(model, located.flatten(0, 2), layout)
    return logits.reshape(B, rows, columns, -1).permute(0, 3, 1, 2)


def _classify(model: nn.Module, locations: Tensor, layout: Layout) -> Tensor:
    """Logits (L, K) of feature vectors (L, C), a bounded number at a time."""
    outputs = None
    for start in range(0, len(locations), _LOCATIONS_AT_ONCE):
        logits = _head(model, locations[start : start + _LOCATIONS_AT_ONCE], layout)
        if outputs is None:  # written in place: joining the parts would hold everything twice
            outputs = logits.new_empty(len(locations), logits.shape[1])
        outputs[start : start + len(logits)] = logits
    assert outputs is not None
    return outputs


def _head(model: nn.Module, locations: Tensor, layout: Layout) -> Tensor:
    aux_head = getattr(model, "aux_head", None)
    if layout == "NLC" and isinstance(aux_head, nn.Linear):  # VOLO
        return aux_head(locations)
    L, C = locations.shape
    if layout == "NCHW":
        alone = locations.reshape(L, C, 1, 1)
    elif layout == "NHWC":
        alone = locations.reshape(L, 1, 1, C)
    else:
        alone = locations[:, None].repeat(1, num_prefix_tokens(model) + 1, 1)
    try:
        logits: Any = model.forward_head(alone)  # type: ignore[operator]
    except (RuntimeError, AssertionError, NotImplementedError, IndexError, TypeError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise no_map(
            name_of(model), f"its classifier does not take a single location: {reason}"
        ) from error
    if isinstance(logits, tuple | list):  # of a distilled network: one classifier each
        logits = torch.stack(tuple(logits)).mean(dim=0)
    expected = (L, int(getattr(model, "num_classes", 0) or 0))
    if tuple(logits.shape) != expected or expected[1] == 0:
        raise no_map(
            name_of(model),
            f"expected logits {expected} of its classifier, got {tuple(logits.shape)}",
        )
    return logits

"""The classifier applied at every location of its last feature map, for any network of timm.

Legend: B batch, C channels, H W rows and columns of a map, N tokens, K classes, L locations.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from wavevit.models.wave_vit import WaveVit, to_nhwc

_LOCATIONS_AT_ONCE = 2048
"""A head may widen each location a hundredfold (VGG's), so it sees this many at a time."""

_Layout = Literal["NCHW", "NHWC", "NLC"]


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
    name = _name_of(model)
    if model.training:
        raise ValueError(f"spatial logits need {name} in evaluation mode; call eval() first")
    for part in ("forward_features", "forward_head"):
        if not callable(getattr(model, part, None)):
            raise _no_map(name, f"it has no {part}(), as timm's classifiers do")
    features = model.forward_features(images)  # type: ignore[operator]
    located, layout = _locate(model, features, (images.shape[-2], images.shape[-1]))
    B, rows, columns, _ = located.shape
    if isinstance(model, WaveVit) and model.aux_head is not None:
        logits = model._token_logits(features).flatten(0, 1)
    else:
        logits = _classify(model, located.flatten(0, 2), layout)
    return logits.reshape(B, rows, columns, -1).permute(0, 3, 1, 2)


def _locate(model: nn.Module, features: Any, image_size: tuple[int, int]) -> tuple[Tensor, _Layout]:
    """The features as (B, rows, columns, C), and how the classifier wants to see them."""
    name = _name_of(model)
    if not isinstance(features, Tensor):
        raise _no_map(name, f"its features are a {type(features).__name__} and not one map")
    if features.ndim == 4:
        layout = _map_layout(model, features)
        return (features if layout == "NHWC" else to_nhwc(features)), layout
    if features.ndim != 3:
        raise _no_map(name, f"its features have the shape {tuple(features.shape)}")
    if callable(getattr(model, "reroll", None)):  # Hiera keeps its tokens in another order
        return model.reroll(features, len(model.blocks) - 1), "NLC"  # type: ignore[operator, arg-type]
    patches = features[:, num_prefix_tokens(model) :]
    if patches.shape[1] == 0:  # PiT
        raise _no_map(name, "nothing but class tokens is left of its features")
    rows, columns = _grid(model, patches.shape[1], image_size)
    return patches.reshape(len(patches), rows, columns, -1), "NLC"


def _map_layout(model: nn.Module, features: Tensor) -> _Layout:
    channels = getattr(model, "num_features", None)
    first, last = features.shape[1] == channels, features.shape[3] == channels
    if first != last:
        return "NCHW" if first else "NHWC"
    # Either reading has as many channels, or neither: what the network says of itself decides.
    return "NHWC" if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC") else "NCHW"


def num_prefix_tokens(model: nn.Module) -> int:
    """Tokens in front of the patches: class, distillation and register tokens.

    Args:
        model: A transformer of timm.
    """
    number = getattr(model, "num_prefix_tokens", None)
    if number is not None:
        return int(number)
    # Some families (VOLO, CoaT, PiT) do not say; those of the last stage are named last.
    tokens = [p for n, p in model.named_parameters(recurse=False) if n.startswith("cls_token")]
    return tokens[-1].shape[1] if tokens else 0


def _grid(model: nn.Module, num_tokens: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a sequence of patch tokens."""
    patch_embed = getattr(model, "patch_embed", None)
    height, width = image_size
    candidates: list[tuple[int, int]] = []
    if callable(getattr(patch_embed, "dynamic_feat_size", None)):
        candidates.append(patch_embed.dynamic_feat_size(image_size))  # type: ignore[union-attr]
    # The network may go on merging patches: grids of the image's proportions at any stride.
    for stride in range(1, max(image_size) + 1):
        candidates.append((-(-height // stride), -(-width // stride)))
        candidates.append((height // stride, width // stride))
    fitting = [(rows, columns) for rows, columns in candidates if 0 < rows * columns == num_tokens]
    if not fitting:
        raise _no_map(
            _name_of(model),
            f"its {num_tokens} tokens are no grid in the proportions of {height}x{width} images",
        )
    return fitting[0]


def _classify(model: nn.Module, locations: Tensor, layout: _Layout) -> Tensor:
    """Logits (L, K) of feature vectors (L, C), a bounded number at a time."""
    outputs = None
    for start in range(0, len(locations), _LOCATIONS_AT_ONCE):
        logits = _head(model, locations[start : start + _LOCATIONS_AT_ONCE], layout)
        if outputs is None:  # written in place: joining the parts would hold everything twice
            outputs = logits.new_empty(len(locations), logits.shape[1])
        outputs[start : start + len(logits)] = logits
    assert outputs is not None
    return outputs


def _head(model: nn.Module, locations: Tensor, layout: _Layout) -> Tensor:
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
        raise _no_map(
            _name_of(model), f"its classifier does not take a single location: {reason}"
        ) from error
    if isinstance(logits, tuple | list):  # of a distilled network: one classifier each
        logits = torch.stack(tuple(logits)).mean(dim=0)
    expected = (L, int(getattr(model, "num_classes", 0) or 0))
    if tuple(logits.shape) != expected or expected[1] == 0:
        raise _no_map(
            _name_of(model),
            f"expected logits {expected} of its classifier, got {tuple(logits.shape)}",
        )
    return logits


def _name_of(model: nn.Module) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


def _no_map(name: str, reason: str) -> ValueError:
    return ValueError(
        f"{name} cannot say what is where in an image: {reason}; take a teacher with a spatial "
        "feature map, such as a convolutional network, a ViT, a Swin or a Wave-ViT"
    )

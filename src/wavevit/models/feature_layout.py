"""Where in an image the features of any network of timm lie.

Legend: B batch, C channels, H W rows and columns of a map, N tokens.
"""

from typing import Any, Literal

from torch import Tensor, nn

from wavevit.models.wave_vit import to_nhwc

Layout = Literal["NCHW", "NHWC", "NLC"]


def locate(
    model: nn.Module, features: Any, image_size: tuple[int, int], channels: int | None = None
) -> tuple[Tensor, Layout]:
    """Features as a map with the channels last, and the layout that they had.

    Args:
        model: The network that they are of.
        features: A map ``(B, C, H, W)`` or ``(B, H, W, C)``, or tokens ``(B, N, C)`` with class
            tokens in front.
        image_size: H and W of the images, pixels.
        channels: C; None for the features that the classifier takes.

    Returns:
        ``(B, H, W, C)``, without class tokens.

    Raises:
        ValueError: They have no place in the image.
    """
    name = name_of(model)
    if not isinstance(features, Tensor):
        raise no_map(name, f"its features are a {type(features).__name__} and not one map")
    if features.ndim == 4:
        layout = _map_layout(model, features, channels)
        return (features if layout == "NHWC" else to_nhwc(features)), layout
    if features.ndim != 3:
        raise no_map(name, f"its features have the shape {tuple(features.shape)}")
    if callable(getattr(model, "reroll", None)):  # Hiera keeps its tokens in another order
        if channels is not None:
            raise no_map(name, "its tokens are in an order of its own between the blocks")
        return model.reroll(features, len(model.blocks) - 1), "NLC"  # type: ignore[operator, arg-type]
    patches = features[:, num_prefix_tokens(model) :]
    if patches.shape[1] == 0:  # PiT
        raise no_map(name, "nothing but class tokens is left of its features")
    rows, columns = _grid(model, patches.shape[1], image_size)
    return patches.reshape(len(patches), rows, columns, -1), "NLC"


def _map_layout(model: nn.Module, features: Tensor, channels: int | None) -> Layout:
    if channels is None:
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
        raise no_map(
            name_of(model),
            f"its {num_tokens} tokens are no grid in the proportions of {height}x{width} images",
        )
    return fitting[0]


def name_of(model: nn.Module) -> str:
    """What timm calls a network, or its class.

    Args:
        model: Any network.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


def no_map(name: str, reason: str) -> ValueError:
    """The error about a network whose features have no place in the image.

    Args:
        name: Of the network.
        reason: Why they have none.
    """
    return ValueError(
        f"{name} cannot say what is where in an image: {reason}; take a network with a spatial "
        "feature map, such as a convolutional network, a ViT, a Swin or a Wave-ViT"
    )

"""Backbones inside checkpoints of mmdetection and mmsegmentation: which they are, and our names."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from wavevit.models import official, weights

PREFIX = "backbone."
OUR_BODY = "network.backbone.body"

# Blocks of the four stages, and whether a block has three convolutions.
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
# With three 3x3 convolutions in place of the first one of 7x7: "ResNetV1c".
_DEEP_STEM = "stem.0.weight"
_DEEP_STEM_WIDTH = 32
_DEEP_STEM_RESNETS = {f"resnet{depth}": f"resnet{depth}c" for depth in (50, 101, 152)}


def recognise_backbone(state: Mapping[str, Tensor]) -> str:
    """The timm name of the Wave-ViT or plain ResNet in a checkpoint.

    Args:
        state: Official names, without wrappings.

    Raises:
        ValueError: It holds another backbone, or none.
    """
    backbone = {n.removeprefix(PREFIX): v for n, v in state.items() if n.startswith(PREFIX)}
    if official.OFFICIAL_KEY in backbone:
        return weights.recognise(backbone).model
    name = _resnet(backbone)
    if name is None:
        some = ", ".join(list(backbone)[:3]) or "nothing"
        raise ValueError(
            f"expected a Wave-ViT or a plain ResNet as the backbone, got entries such as {some}"
        )
    return name


def _resnet(backbone: Mapping[str, Tensor]) -> str | None:
    depths = tuple(
        len({match[1] for n in backbone if (match := re.match(rf"^layer{i}\.(\d+)\.", n))})
        for i in (1, 2, 3, 4)
    )
    first = backbone.get("layer1.0.conv1.weight")
    if first is None or tuple(first.shape[:1]) != (64,):
        return None
    name = _RESNETS.get((depths, "layer1.0.conv3.weight" in backbone))
    if "conv1.weight" in backbone:
        return name
    stem = backbone.get(_DEEP_STEM)
    if stem is None or len(stem) != _DEEP_STEM_WIDTH:
        return None
    return _DEEP_STEM_RESNETS.get(name or "")


def our_backbone(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's entries of a checkpoint, under the names of a network that is built on it.

    Args:
        model: The network, with the backbone at `OUR_BODY`; not changed.
        state: Official names, without wrappings; entries behind the backbone are left out.

    Raises:
        ValueError: A wavelet buffer does not hold the Haar filters.
    """
    backbone = {n.removeprefix(PREFIX): v for n, v in state.items() if n.startswith(PREFIX)}
    if _DEEP_STEM in backbone:
        backbone = {_our_stem(name): value for name, value in backbone.items()}
    adapted, _ = official.adapt(model.get_submodule(OUR_BODY), backbone)
    return {f"{OUR_BODY}.{name}": value for name, value in adapted.items()}


def _our_stem(name: str) -> str:
    # The stem's last norm, behind three convolutions, two norms and two activations, is a layer
    # of its own in timm.
    name = re.sub(r"^stem\.7\.", "bn1.", name)
    return re.sub(r"^stem\.", "conv1.", name)

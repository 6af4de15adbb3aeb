"""Where the maps of a network's stages come out.

Legend: B images, C channels, H W rows and columns of a map.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from wavevit.models.feature_layout import locate, name_of
from wavevit.models.pyramid_backbone import PYRAMID_STRIDES, PyramidBackbone, module_of_map
from wavevit.models.wave_vit import WaveVit


class StageMap(NamedTuple):
    """The map of one stage.

    Attributes:
        network: That it is a stage of.
        module: Whose output the map is.
        channels: C.
        stride: Pixels of the image per position.
    """

    network: nn.Module
    module: nn.Module
    channels: int
    stride: int

    def located(self, features: Any, image_size: tuple[int, int]) -> Tensor:
        """An output of the module, or its gradient, as ``(B, H, W, C)``.

        Args:
            features: What the module gave.
            image_size: H and W of the images, pixels.

        Raises:
            ValueError: It has no place in the image.
        """
        return locate(self.network, features, image_size, self.channels)[0]


def stage_map(model: nn.Module, stage: int) -> StageMap:
    """Where the map of a stage comes out.

    A network with maps at strides 4, 8, 16 and 32 has these four stages; of another one, each entry
    of its ``feature_info`` is a stage (a ViT's are its blocks).

    Args:
        model: A network of timm, or a detector or segmenter with one as its backbone.
        stage: From 0; negative ones count from the last.

    Raises:
        ValueError: No such stage, or the model does not say what its stages are.
    """
    if not isinstance(stage, int):
        raise ValueError(f"a stage is a whole number, got {stage!r}")
    network = backbone_of(model)
    entries = _stage_entries(network)
    if not -len(entries) <= stage < len(entries):
        strides = ", ".join(str(stride) for _, _, stride in entries)
        raise ValueError(
            f"{name_of(network)} has the stages 0 to {len(entries) - 1} at strides {strides}; "
            f"got stage {stage}"
        )
    name, channels, stride = entries[stage]
    if isinstance(network, WaveVit):
        # Class attention reads the last map before its norm; the norm then sees other tensors too.
        return StageMap(network, network.stages[stage], channels, stride)
    found = module_of_map(network, name)
    if found is None:
        raise ValueError(f"{name_of(network)} has no module {name}, where a stage should end")
    return StageMap(network, found[1], channels, stride)


def backbone_of(model: nn.Module) -> nn.Module:
    """The network of timm inside of a detector or segmenter; else the model.

    Args:
        model: Any network.
    """
    for module in model.modules():
        if isinstance(module, PyramidBackbone):
            return module.body
    return model


def _stage_entries(network: nn.Module) -> list[tuple[str, int, int]]:
    """Module's name, channels and stride of each stage."""
    info: Any = getattr(network, "feature_info", None)
    if callable(getattr(info, "get_dicts", None)):
        info = info.get_dicts()
    if not info:
        raise ValueError(
            f"{name_of(network)} does not say what its stages are: expected a network of timm, "
            "with feature_info; for an exported model, give the file that it came from"
        )
    entries = [(str(e["module"]), int(e["num_chs"]), int(e["reduction"])) for e in info]
    by_stride = {entry[2]: entry for entry in entries}  # of one stride the last is the richest
    if all(stride in by_stride for stride in PYRAMID_STRIDES):
        return [by_stride[stride] for stride in PYRAMID_STRIDES]
    return entries

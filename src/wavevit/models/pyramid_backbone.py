"""Any timm network as the backbone of a detector or a segmenter.

Legend: B batch, C channels, H W rows and columns of a map.
"""

from typing import Any, Literal

import timm
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wavevit.models.card import create_model

BatchNormMode = Literal["trained", "affine_frozen", "frozen"]
_BATCH_NORM_MODES = ("trained", "affine_frozen", "frozen")

# What the necks are made for; a stem's map at stride 2 is left out.
PYRAMID_STRIDES = (4, 8, 16, 32)


class PyramidBackbone(nn.Module):
    """Four maps ``(B, C, H/s, W/s)`` at strides s = 4, 8, 16, 32, from a timm network.

    Args:
        backbone: timm model name, or a network built with ``features_only=True``.
        pretrained: Loads timm's weights; only with a name.
        drop_path_rate: Stochastic depth of the last block; 0.1 in the published detectors. Only
            with a name.
        batch_norm: "trained": as any other layer. "affine_frozen", as published: scale and shift
            stay, statistics are the batch's and the running ones move. "frozen": scale, shift and
            statistics stay, the choice for pretrained weights and few images a process. A scale
            of all zeros, as in fresh ResNets, becomes 1 before it is frozen.
        frozen_stages: So many of the four stages, with all that comes before them, are neither
            trained nor put in training mode.
        grad_checkpointing: Recomputes activations in the backward pass, to save memory.

    Attributes:
        channels: Channels C of the four maps.
        strides: Their strides.
        mean: Mean of each channel, of values in [0, 1], that the weights expect.
        std: Standard deviation of each channel.

    Raises:
        ValueError: timm has no such network, it is no pyramid, or an option does not apply to it.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        batch_norm: BatchNormMode = "affine_frozen",
        frozen_stages: int = 0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if batch_norm not in _BATCH_NORM_MODES:
            raise ValueError(
                f"batch_norm must be one of {', '.join(_BATCH_NORM_MODES)}, got {batch_norm!r}"
            )
        if not 0 <= frozen_stages <= len(PYRAMID_STRIDES):
            raise ValueError(f"frozen_stages must be 0 to 4, got {frozen_stages}")
        if isinstance(backbone, str):
            self.name = backbone
            self.body = _create(backbone, pretrained, drop_path_rate)
        else:
            self.name = type(backbone).__name__
            if pretrained or drop_path_rate:
                raise ValueError(
                    f"pretrained and drop_path_rate need the backbone's name, not a built "
                    f"{self.name}: give them when building it"
                )
            self.body = backbone
        self._read_feature_info()
        config = getattr(self.body, "pretrained_cfg", None) or {}
        self.mean = tuple(config.get("mean", IMAGENET_DEFAULT_MEAN))
        self.std = tuple(config.get("std", IMAGENET_DEFAULT_STD))
        # Swin and its like refuse sides that their patches do not divide, though they take any
        # number of patches.
        self._side_step = PYRAMID_STRIDES[0] if config.get("fixed_input_size") else 1

        self._statistics_frozen = batch_norm == "frozen"
        self._frozen_modules: set[str] = set()
        if batch_norm != "trained":
            self._freeze_batch_norms()
        if frozen_stages:
            self._freeze_stages(frozen_stages)
        if grad_checkpointing:
            self._set_grad_checkpointing()
        self.train(self.training)

    def _read_feature_info(self) -> None:
        info: Any = getattr(self.body, "feature_info", None)
        if not hasattr(info, "reduction") or not hasattr(info, "channels"):
            raise ValueError(
                f"{self.name} does not say which maps it returns: build it with "
                "timm.create_model(..., features_only=True)"
            )
        strides = list(info.reduction())
        # Of maps with one stride the last is the richest.
        self._taken = [
            len(strides) - 1 - strides[::-1].index(stride)
            for stride in PYRAMID_STRIDES
            if stride in strides
        ]
        if len(self._taken) < len(PYRAMID_STRIDES):
            raise ValueError(
                "detectors and segmenters need a backbone with maps at strides 4, 8, 16, 32; "
                f"{self.name} has them at {', '.join(map(str, strides))}"
            )
        self.strides = PYRAMID_STRIDES
        self.channels = tuple(info.channels()[i] for i in self._taken)
        self._modules_of_maps = [str(info.module_name()[i]) for i in self._taken]
        # Swin and its like keep channels last.
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")

    def _freeze_batch_norms(self) -> None:
        for module in self.body.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
                if module.affine and not module.weight.is_meta and not module.weight.any():
                    # timm's fresh ResNets start residual branches at 0, to be learned. Frozen
                    # there, nothing before it in the branch would ever learn.
                    nn.init.ones_(module.weight)

    def _freeze_stages(self, count: int) -> None:
        """Freezes everything that is registered, and so runs, up to a stage's last module."""
        last = self._modules_of_maps[count - 1]
        found = module_of_map(self.body, last)
        if found is None:
            raise ValueError(f"cannot freeze stages of {self.name}: it has no module {last}")
        modules = list(self.body.named_modules())
        inside = [i for i, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{found[0]}.")]
        frozen = modules[: inside[-1] + 1]
        behind = [name for name, _ in modules[inside[-1] + 1 :]]
        for name, module in frozen:
            # Not what also holds later stages, such as the network itself.
            if name and not any(later.startswith(f"{name}.") for later in behind):
                module.requires_grad_(False)
                self._frozen_modules.add(name)
            else:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)

    def _set_grad_checkpointing(self) -> None:
        enable = getattr(self.body, "set_grad_checkpointing", None)
        if enable is None:
            raise ValueError(f"{self.name} has no gradient checkpointing: leave it out")
        enable(True)

    def train(self, mode: bool = True) -> "PyramidBackbone":
        """Sets the mode; what is frozen stays in evaluation mode.

        Args:
            mode: Training mode if True.
        """
        super().train(mode)
        # By name: conversions, such as to synchronised norms, replace modules.
        for name, module in self.body.named_modules():
            frozen_norm = self._statistics_frozen and isinstance(module, _BatchNorm)
            if frozen_norm or name in self._frozen_modules:
                module.training = False
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps, finest first.

        Args:
            images: Normalised images ``(B, 3, H, W)``.
        """
        if self._side_step > 1:
            H, W = images.shape[-2:]
            images = F.pad(images, (0, -W % self._side_step, 0, -H % self._side_step))
        features = self.body(images)
        maps = [features[i] for i in self._taken]
        return [m.permute(0, 3, 1, 2) for m in maps] if self._channels_last else maps


def module_of_map(network: nn.Module, name: str) -> tuple[str, nn.Module] | None:
    """The module whose output is a map, with its name in the network; None if there is none.

    Args:
        network: A network of timm; ``features_only=True`` may have renamed its modules.
        name: The module's name in the network's ``feature_info``.
    """
    names = {name, name.replace(".", "_"), f"model.{name}"}
    return next((item for item in network.named_modules() if item[0] in names), None)


def _create(name: str, pretrained: bool, drop_path_rate: float) -> nn.Module:
    arguments: dict[str, object] = {}
    if drop_path_rate:
        arguments["drop_path_rate"] = drop_path_rate  # not every network takes one
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        arguments["strict_img_size"] = False  # Swin: images of any size
    try:
        return create_model(name, features_only=True, pretrained=pretrained, **arguments)
    except ValueError as error:
        if "strict_img_size" in str(error):
            raise ValueError(
                "detectors and segmenters need a backbone for images of any size; "
                f"{name} takes one size only"
            ) from error
        raise

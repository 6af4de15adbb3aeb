"""Where a network looks in a picture, laid over what it is given of it.

Shape legend: H rows, W columns of what the network sees, h w those of a map.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wavevit.demo.looks import ClassLooker, LabelLooker, Looker, ObjectLooker, pixels_of
from wavevit.explain import class_token_attention, grad_cam
from wavevit.export.loading import FilePart
from wavevit.models.wave_vit import ClassAttentionBlock
from wavevit.pictures.heat_maps import heat_overlay
from wavevit.segmentation.segmenter import MIN_SIDE

Method = Literal["grad-cam", "attention"]
METHODS: tuple[Method, ...] = ("grad-cam", "attention")
STAGES = (-4, -3, -2, -1)
"""The last four stages; all of a pyramid, at strides 4, 8, 16 and 32."""

_SHOWN = 512  # pixels of the longer side, about, of what is smaller


@dataclass(frozen=True)
class Question:
    """What a user wants to have explained.

    Attributes:
        method: "attention" is for classifiers with a class token.
        stage: Of Grad-CAM, one of `STAGES`.
        target: Class, or rank of an object from 0; None is the most probable, most frequent or most
            certain one.
    """

    method: Method = "grad-cam"
    stage: int = -1
    target: int | None = None


def has_class_token(looker: Looker) -> bool:
    """Whether a class token's attention can be shown.

    Args:
        looker: Of any task.
    """
    return isinstance(looker, ClassLooker) and any(
        isinstance(module, ClassAttentionBlock) for module in looker.classifier.model.modules()
    )


def draw_where(looker: Looker, picture: Image.Image, question: Question) -> Image.Image:
    """What the network sees of a picture, with the places that matter bright.

    Maps are scaled so that their largest value is the brightest: they compare places, not pictures.

    Args:
        looker: The network.
        picture: RGB.
        question: What is asked.

    Raises:
        ValueError: No such stage, class or object, a network without a class token, or an exported
            one.
    """
    model, images, seen = _given(looker, picture)
    if any(isinstance(module, FilePart) for module in model.modules()):
        raise ValueError(
            "This is an exported model, which cannot tell where it looks: it takes the model file "
            "that it was exported from."
        )
    if question.method == "attention":
        heat = class_token_attention(model, images).mean(dim=1)[0]
    else:
        heat = grad_cam(model, images, question.target, question.stage)[0]
    if not heat.isfinite().all():
        raise ValueError("The network's map is NaN or infinite here: there is nothing to show.")
    factor = max(1, round(_SHOWN / max(seen.size)))
    size = (seen.width * factor, seen.height * factor)
    enlarged = seen.resize(size, Image.Resampling.BICUBIC)
    return heat_overlay(enlarged, heat.detach().cpu().float().numpy())


def _given(looker: Looker, picture: Image.Image) -> tuple[nn.Module, Tensor, Image.Image]:
    """The network, its input (1, 3, H, W), and that as an image."""
    if isinstance(looker, ClassLooker):
        card = looker.classifier.card
        images = looker.input(picture)
        return looker.classifier.model, images, _image(images[0], card.mean, card.std)
    if isinstance(looker, ObjectLooker):
        prepared = looker.predictor.prepare(pixels_of(picture)).pixels
        unit = prepared if prepared.is_floating_point() else prepared.float() / 255
        return looker.predictor.detector, unit[None], _image(unit, (0.0,), (1.0,))
    assert isinstance(looker, LabelLooker)
    label_card = looker.predictor.card
    view = looker.predictor.prepare(pixels_of(picture)).views[0]
    unit = view if view.is_floating_point() else view.float() / 255
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (label_card.mean, label_card.std))
    # As the predictor does it: long thin pictures are smaller than a segmenter takes.
    below, beside = (max(MIN_SIDE - side, 0) for side in unit.shape[1:])
    images = F.pad((unit - mean) / std, (0, beside, 0, below))
    return looker.predictor.segmenter, images[None], _image(images, label_card.mean, label_card.std)


def _image(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Image.Image:
    unit = pixels * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    levels = (unit.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())

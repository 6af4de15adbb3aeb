"""Where a network looks in a picture, laid over what it is given of it.

Shape legend: H rows, W columns of what the network sees, h w those of a map.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from wavevit.demo.looks import ClassLooker, LabelLooker, Looker, ObjectLooker, pixels_of
from wavevit.explain import class_token_attention, grad_cam
from wavevit.models.wave_vit import ClassAttentionBlock
from wavevit.segmentation.segmenter import MIN_SIDE

Method = Literal["grad-cam", "attention"]
METHODS: tuple[Method, ...] = ("grad-cam", "attention")
STAGES = (-4, -3, -2, -1)
"""The last four stages; all of a pyramid, at strides 4, 8, 16 and 32."""

_SHOWN = 512  # pixels of the longer side, at least
# From cold to hot, by rising lightness: also without colours the brightest place is the hottest.
_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HEAT = ((24, 15, 62), (114, 31, 129), (205, 64, 113), (253, 154, 106), (252, 253, 191))


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
        ValueError: No such stage, class or object, or a network without a class token.
    """
    model, images, seen = _given(looker, picture)
    if question.method == "attention":
        heat = class_token_attention(model, images).mean(dim=1)[0]
    else:
        heat = grad_cam(model, images, question.target, question.stage)[0]
    if not heat.isfinite().all():
        raise ValueError("The network's map is NaN or infinite here: there is nothing to show.")
    return draw_heat(seen, heat.detach().cpu().float().numpy())


def draw_heat(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """A greyer copy of an image, enlarged where it is small, with a map's colours over it.

    Args:
        image: RGB.
        heat: (h, w), not negative; all zero leaves everything cold.
    """
    factor = max(1, round(_SHOWN / max(image.size)))
    size = (image.width * factor, image.height * factor)
    values = np.asarray(heat, np.float32) / max(float(heat.max()), 1e-12)
    smooth = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colors = np.stack([np.interp(smooth, _STOPS, channel) for channel in zip(*_HEAT, strict=True)])
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
    calm = 0.5 * pixels + 0.5 * pixels.mean(axis=2, keepdims=True)
    share = (0.35 + 0.35 * smooth)[..., None]
    mixed = calm * (1 - share) + colors.transpose(1, 2, 0) * share
    return Image.fromarray(np.rint(mixed.clip(0, 255)).astype(np.uint8))


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

"""Losses of segmenters: cross-entropy, with class weights or of hard pixels only, and Dice.

Class logits come at a quarter of the label map's size. Resized, those of ADE20K's 150 classes are
the largest tensors of a training step by far: 160 MB for an image of 512 x 512, several times over.
So they are made for one image at a time.

Legend: B batch, H W rows and columns of the label map, h w of the logits, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from wavevit.models.option_checks import (
    check_positive,
    check_share,
    check_weights,
    check_whole,
)
from wavevit.segmentation.resize import resize_bilinear

IGNORE_INDEX = 255
"""Label of pixels that do not count."""

LossAverage = Literal["all_pixels", "valid_pixels"]
_AVERAGES = ("all_pixels", "valid_pixels")


class PixelCrossEntropy(nn.Module):
    """Cross-entropy of every pixel's class, averaged.

    Args:
        num_classes: Classes K.
        class_weights: Factor of each class's pixels; None: 1.
        average: What the sum is divided by. "all_pixels", as published: the number of pixels,
            ignored ones included. "valid_pixels": the sum of the weights of those that count.
        ohem_threshold: Online hard example mining (Shrivastava et al. 2016, arXiv 1604.03540):
            only pixels whose true class has less than this probability count, and the sum is
            divided by their number. None: all count.
        ohem_min_kept: The hardest pixels, so many an image on average over the batch, count in any
            case.

    Attributes:
        class_weights: Factors ``(K,)``, float32, or None.

    Raises:
        ValueError: A value that does not fit.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        class_weights: Sequence[float] | None = None,
        average: LossAverage = "all_pixels",
        ohem_threshold: float | None = None,
        ohem_min_kept: int = 100_000,
    ) -> None:
        super().__init__()
        if average not in _AVERAGES:
            raise ValueError(f"loss_average must be one of {', '.join(_AVERAGES)}, got {average!r}")
        if ohem_threshold is not None:
            check_share(ohem_threshold=ohem_threshold)
            check_positive(ohem_threshold=ohem_threshold)
        check_whole(0, ohem_min_kept=ohem_min_kept)
        if class_weights is not None:
            check_weights(num_classes, class_weights=class_weights)
        self.average = average
        self.ohem_threshold = ohem_threshold
        self.ohem_min_kept = ohem_min_kept
        weights = None if class_weights is None else torch.tensor(class_weights).float()
        # Not learned: given anew whenever the segmenter is built.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar of the logits' type; 0 where no pixel counts.

        Args:
            logits: float32 ``(B, K, h, w)``.
            labels: int64 ``(B, H, W)`` in [0, K), or `IGNORE_INDEX`.
        """
        valid = labels != IGNORE_INDEX
        weights = valid.to(logits.dtype)
        if self.class_weights is not None:
            weights = weights * self.class_weights.to(logits.dtype)[labels.where(valid, 0)]
        if self.ohem_threshold is not None:
            hard = self._hard_pixels(logits, labels, valid)
            weights = weights * hard
            divisor = hard.sum()
        elif self.average == "all_pixels":
            divisor = weights.new_full((), weights.numel())
        else:
            divisor = weights.sum()
        total = _WeightedCrossEntropy.apply(logits, labels, weights)
        return total / torch.where(divisor > 0, divisor, 1.0)

    @torch.no_grad()
    def _hard_pixels(self, logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Which pixels count, bool ``(B, H, W)``; without waiting for the device."""
        assert self.ohem_threshold is not None
        losses = torch.cat(
            [_cross_entropies(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))]
        )
        losses = losses.where(valid, -math.inf)
        least = -math.log(self.ohem_threshold)
        num_kept = min(self.ohem_min_kept * len(labels), losses.numel())
        if num_kept == 0:
            return valid & (losses > least)
        hardest = losses.flatten().kthvalue(losses.numel() - num_kept + 1).values
        return valid & ((losses > least) | (losses >= hardest))


class DiceLoss(nn.Module):
    """One minus the Dice coefficient of each class in the batch, averaged over those classes.

    The coefficient is ``2 sum(p g) / (sum(p^2) + sum(g^2))`` over the pixels that count, with the
    class's probabilities p and its truth g, 0 or 1 (Milletari et al. 2016, "V-Net", arXiv
    1606.04797, section 3). Classes without a pixel in the batch are left out.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar of the logits' type; 0 where no pixel counts.

        Args:
            logits: float32 ``(B, K, h, w)``.
            labels: int64 ``(B, H, W)`` in [0, K), or `IGNORE_INDEX`.
        """
        # In the backward pass, each image's sums are computed again.
        sums = [
            checkpoint(_class_sums, *one, use_reentrant=False, preserve_rng_state=False)
            for one in zip(logits.split(1), labels.split(1), strict=True)
        ]
        overlap, squares, pixels = torch.stack(sums).sum(dim=0)
        dice = 2 * overlap / (squares + pixels).clamp(min=1)
        present = pixels > 0
        return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def check_labels(labels: Tensor | None, images: Tensor, num_classes: int) -> Tensor:
    """The label map, fit to be trained on.

    Args:
        labels: int64 ``(B, H, W)``.
        images: Of the same batch, ``(B, 3, H, W)``.
        num_classes: Classes K.

    Raises:
        ValueError: None, of another type or shape, or a label beyond the classes.
    """
    if labels is None:
        raise ValueError(
            "a segmenter in training mode needs labels beside the images; call eval() to predict"
        )
    expected = (len(images), *images.shape[-2:])
    if labels.dtype != torch.int64 or tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must be int64 of shape {expected}, as the images are, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}"
        )
    # One look a batch: on an accelerator, such a label would end the process with no such message.
    least, most = labels.masked_fill(labels == IGNORE_INDEX, 0).aminmax()
    if bool((least < 0) | (most >= num_classes)):
        wrong = int(least) if least < 0 else int(most)
        raise ValueError(
            f"labels must be 0 to {num_classes - 1}, or {IGNORE_INDEX} for pixels to ignore, got "
            f"{wrong}; map the label files' values to classes, or set num_classes"
        )
    return labels


class _WeightedCrossEntropy(torch.autograd.Function):
    """The sum of all pixels' cross-entropies times their weights.

    Each image's gradient is computed with its loss, so that nothing of the label map's size is kept
    for the backward pass, and nothing computed twice.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        total = logits.new_zeros(())
        slopes = []
        for one, *rest in zip(logits.split(1), labels.split(1), weights.split(1), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                leaf = one.detach().requires_grad_(ctx.needs_input_grad[0])
                loss = (_cross_entropies(leaf, rest[0]) * rest[1]).sum()
            if ctx.needs_input_grad[0]:
                slopes += torch.autograd.grad(loss, leaf)
            total += loss.detach()
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return grad * slopes, None, None


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    resized = resize_bilinear(logits, labels.shape[-2:])
    return F.cross_entropy(resized, labels, ignore_index=IGNORE_INDEX, reduction="none")


def _class_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each class, the sums of p g, p^2 and g^2 over an image: ``(3, K)``."""
    K = logits.shape[1]
    valid = labels != IGNORE_INDEX
    classes = labels.where(valid, 0)
    probabilities = resize_bilinear(logits, labels.shape[-2:]).softmax(dim=1) * valid[:, None]
    of_truth = probabilities.gather(1, classes[:, None]).flatten()
    empty = of_truth.new_zeros(K)
    overlap = empty.index_add(0, classes.flatten(), of_truth)
    pixels = empty.index_add(0, classes.flatten(), valid.flatten().to(empty.dtype))
    return torch.stack([overlap, probabilities.square().sum(dim=(0, 2, 3)), pixels])

"""The numbers that are explained: a score for each image.

Legend: B images, H W rows and columns, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from wavevit.detection.detector import Detection, Detector
from wavevit.segmentation.segmenter import Segmenter

Targets: TypeAlias = Tensor | Sequence[int] | int | Callable[[Any], Tensor]


def scores_of(model: nn.Module, images: Tensor, targets: Targets | None) -> Tensor:
    """Scores ``(B,)`` of the targets, with their graph.

    Args:
        model: Classifier, segmenter or detector, in evaluation mode.
        images: ``(B, 3, H, W)`` on its device.
        targets: As `wavevit.explain.grad_cam` takes them.

    Raises:
        ValueError: Targets that are none of the model's, or another output than expected.
    """
    # A detector's own call takes no gradients.
    output: Any = (
        model.detect(model.preprocess(list(images)))
        if isinstance(model, Detector)
        else model(images)
    )
    if callable(targets):
        scores = targets(output)
        if not isinstance(scores, Tensor) or scores.shape != (len(images),):
            raise ValueError(
                f"expected scores ({len(images)},) of the function, got {_described(scores)}"
            )
        return scores
    if isinstance(model, Detector):
        return _object_scores(output, targets)
    if isinstance(model, Segmenter):
        return _pixel_scores(output, targets)
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError(
            f"expected class logits (B, K) of the model, got {_described(output)}; pass a "
            "function from its output to scores (B,) as targets"
        )
    classes = output.argmax(dim=1) if targets is None else _classes(targets, output)
    return output.gather(1, classes[:, None])[:, 0]


def _pixel_scores(logits: Tensor, targets: Targets | None) -> Tensor:
    """Sums of logits over the pixels of a class (Vinogradova et al. 2020, arXiv 2002.11434)."""
    found = logits.argmax(dim=1)
    most = found.flatten(1).mode(dim=1).values
    classes = most if targets is None else _classes(targets, logits)
    is_class = found == classes[:, None, None]
    for number, (image, index) in enumerate(zip(is_class, classes.tolist(), strict=True)):
        if not image.any():
            there = ", ".join(str(c) for c in found[number].unique().tolist())
            raise ValueError(
                f"class {index} is nowhere in image {number}; the segmenter sees {there} there"
            )
    chosen = logits.gather(1, classes[:, None, None, None].expand(-1, -1, *found.shape[1:]))[:, 0]
    return (chosen * is_class).sum(dim=(1, 2))


def _described(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _object_scores(detections: Sequence[Detection], targets: Targets | None) -> Tensor:
    """Scores of objects, by their rank in each image."""
    ranks = [0] * len(detections) if targets is None else _indices(targets, len(detections))
    chosen = []
    for number, (detection, rank) in enumerate(zip(detections, ranks, strict=True)):
        found = len(detection["scores"])
        if not 0 <= rank < found:
            raise ValueError(
                f"image {number} has {found} objects that the detector finds, numbered from 0; "
                f"there is no object {rank}"
            )
        chosen.append(detection["scores"][rank])
    return torch.stack(chosen)


def _classes(targets: Any, output: Tensor) -> Tensor:
    """Class numbers ``(B,)`` for an output ``(B, K, ...)``."""
    B, K = output.shape[:2]
    indices = _indices(targets, B)
    if min(indices) < 0 or max(indices) >= K:
        raise ValueError(f"classes are 0 to {K - 1}, got {indices}")
    return torch.tensor(indices, device=output.device)


def _indices(targets: Any, count: int) -> list[int]:
    indices = torch.as_tensor(targets)
    if indices.ndim == 0:
        indices = indices.expand(count)
    is_number = not (indices.dtype.is_floating_point or indices.dtype == torch.bool)
    if not is_number or indices.shape != (count,):
        raise ValueError(
            f"expected one whole number, or one for each of {count} images, as targets; got "
            f"{indices.dtype} {tuple(indices.shape)}"
        )
    numbers: list[int] = indices.tolist()
    return numbers

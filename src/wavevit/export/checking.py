"""How far the predictions of an exported model are from those of the network itself.

Legend: B images, K classes, N objects of an image, H W rows and columns of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wavevit.detection.inference import FoundObjects
from wavevit.segmentation.inference import LabelledPicture

LOGIT_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 0.5  # pixels of the image
LEAST_AGREEMENT = 0.97  # share of images with the same best class in int8
LEAST_PIXELS = 0.999  # share that has the same label, or is in the same masks


@dataclass(frozen=True)
class Comparison:
    """What was compared, and how it came out.

    Attributes:
        passed: Whether it is within the bars.
        text: The numbers, with the bars, in one line.
        numbers: The same by name.
    """

    passed: bool
    text: str
    numbers: dict[str, float]


def compare_logits(eager: Tensor, exported: Tensor) -> Comparison:
    """Classifiers: the same five best classes in the same order, and logits within 1e-3.

    Classes that the network itself holds equal within the tolerance may change places.

    Args:
        eager: Logits ``(B, K)`` of the network.
        exported: Of the exported one.
    """
    worst = float((eager - exported).abs().max())
    k = min(5, eager.shape[1])
    ours, theirs = eager.topk(k).indices, exported.topk(k).indices
    at_places = [eager.gather(1, index) for index in (ours, theirs)]
    is_same = ((ours == theirs) | ((at_places[0] - at_places[1]).abs() <= LOGIT_TOLERANCE)).all(1)
    same = int(is_same.sum())
    text = (
        f"same top-{k} on {same} of {len(eager)} images, logits differ by at most {worst:.1e} "
        f"(bars: all, {LOGIT_TOLERANCE:.0e})"
    )
    passed = same == len(eager) and worst <= LOGIT_TOLERANCE
    return Comparison(passed, text, {"images": len(eager), "same": same, "largest": worst})


def compare_int8(eager: Tensor, exported: Tensor, labels: Tensor | None) -> Comparison:
    """Classifiers in int8: the same best class on 97 % of the images.

    Args:
        eager: Logits ``(B, K)`` of the network.
        exported: Of the exported one.
        labels: int64 ``(B,)`` true classes, or None if they are not known.
    """
    best = [logits.argmax(dim=1) for logits in (eager, exported)]
    agreement = float((best[0] == best[1]).double().mean())
    text = f"same top-1 on {100 * agreement:.2f} % of {len(eager)} images"
    numbers = {"images": float(len(eager)), "agreement": agreement}
    if labels is not None:
        before, after = (float((found == labels).double().mean()) for found in best)
        text += f", accuracy {100 * before:.2f} % before and {100 * after:.2f} % after"
        numbers |= {"before": before, "after": after}
    text += f" (bar: {100 * LEAST_AGREEMENT:.0f} % the same)"
    return Comparison(agreement >= LEAST_AGREEMENT, text, numbers)


def compare_objects(
    eager: Sequence[FoundObjects],
    exported: Sequence[FoundObjects],
    score_threshold: float,
    most: int,
) -> Comparison:
    """Detectors: the same objects after all post-processing.

    An object counts as the same with its class, a score within 0.001, and all sides of its box
    within half a pixel. One that only one of both found is a difference, unless its score is
    within 0.001 of the threshold or, in a full image, of the lowest: there chance decides. Where
    neither finds anything, nothing was compared, and that is no pass.

    Args:
        eager: Of each image, by the detector.
        exported: By the exported one.
        score_threshold: Of the detector.
        most: Objects that an image can have.
    """
    count, missed, box, score, mask = 0, 0, 0.0, 0.0, 1.0
    for ours, theirs in zip(eager, exported, strict=True):
        pairs, alone = _matched(ours, theirs)
        count += len(ours)
        missed += sum(not _is_last(found, i, score_threshold, most) for found, i in alone)
        for i, j in pairs:
            box = max(box, float((ours.boxes_xyxy[i] - theirs.boxes_xyxy[j]).abs().max()))
            score = max(score, float((ours.scores[i] - theirs.scores[j]).abs()))
        mask = min(mask, _same_mask_pixels(ours, theirs, pairs))
    numbers = {"images": len(eager), "objects": count, "unmatched": missed, "largest": box}
    if count == 0 and not any(len(found) for found in exported):
        text = (
            f"nothing to compare, no object on {len(eager)} images by the detector or its export; "
            "give images with objects that it finds"
        )
        return Comparison(False, text, numbers)
    has_masks = any(found.masks is not None for found in eager)
    text = (
        f"{count} objects on {len(eager)} images, {missed} without a match, boxes differ by at "
        f"most {box:.2g} pixels, scores by {score:.1e}"
        + (f", {100 * mask:.3f} % of mask pixels agree" if has_masks else "")
        + f" (bars: 0, {BOX_TOLERANCE}, {SCORE_TOLERANCE:.0e}"
        + (f", {100 * LEAST_PIXELS:.1f} %)" if has_masks else ")")
    )
    passed = missed == 0 and mask >= LEAST_PIXELS
    return Comparison(passed, text, numbers)


def _matched(
    ours: FoundObjects, theirs: FoundObjects
) -> tuple[list[tuple[int, int]], list[tuple[FoundObjects, int]]]:
    """Pairs of the same object, and objects that are without a partner."""
    free = set(range(len(theirs)))
    pairs, alone = [], []
    for i in range(len(ours)):
        near = [
            j
            for j in free
            if ours.labels[i] == theirs.labels[j]
            and (ours.scores[i] - theirs.scores[j]).abs() <= SCORE_TOLERANCE
            and (ours.boxes_xyxy[i] - theirs.boxes_xyxy[j]).abs().max() <= BOX_TOLERANCE
        ]
        if near:
            distances = (ours.boxes_xyxy[i] - theirs.boxes_xyxy[near]).abs().amax(dim=1)
            best = near[int(distances.argmin())]
            free.remove(best)
            pairs.append((i, best))
        else:
            alone.append((ours, i))
    return pairs, alone + [(theirs, j) for j in sorted(free)]


def _is_last(found: FoundObjects, index: int, score_threshold: float, most: int) -> bool:
    """Whether an object was kept by chance: its score is hardly above what is dropped."""
    lowest = float(found.scores.min()) if len(found) >= most else score_threshold
    return float(found.scores[index]) - lowest <= SCORE_TOLERANCE


def _same_mask_pixels(
    ours: FoundObjects, theirs: FoundObjects, pairs: Sequence[tuple[int, int]]
) -> float:
    """The least share of an image's pixels on which both masks of an object agree."""
    if ours.masks is None or theirs.masks is None or not pairs:
        return 1.0
    H, W = ours.size
    differing = max(
        int((ours.masks[i].pasted((H, W)) != theirs.masks[j].pasted((H, W))).sum())
        for i, j in pairs
    )
    return 1 - differing / (H * W)


def compare_labels(
    eager: Sequence[LabelledPicture], exported: Sequence[LabelledPicture]
) -> Comparison:
    """Segmenters: the same label on 99.9 % of all pixels.

    Args:
        eager: Of each image, by the segmenter.
        exported: By the exported one.
    """
    pixels = sum(picture.labels.numel() for picture in eager)
    same = sum(
        int(torch.eq(ours.labels, theirs.labels).sum())
        for ours, theirs in zip(eager, exported, strict=True)
    )
    share = same / pixels
    text = (
        f"{100 * share:.4f} % of {pixels} pixels on {len(eager)} images have the same label "
        f"(bar: {100 * LEAST_PIXELS:.1f} %)"
    )
    return Comparison(share >= LEAST_PIXELS, text, {"images": len(eager), "same": share})

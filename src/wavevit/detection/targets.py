"""The truth that training needs, checked at the door.

Legend: N objects of an image, H W height and width in pixels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Target = dict[str, Tensor]


def check_targets(
    targets: Sequence[Mapping[str, Tensor]] | None,
    images: Sequence[Tensor],
    *,
    num_classes: int,
    with_masks: bool,
) -> list[Target]:
    """The targets, fp32 boxes and on the images' device; other keys are left out.

    Args:
        targets: One dict an image: "boxes" ``(N, 4)`` xyxy in pixels, float; "labels" ``(N,)``
            int64 in 0..num_classes-1; with masks also "masks" ``(N, H, W)``, uint8 or bool. N may
            be 0.
        images: The images ``(3, H, W)`` that they belong to.
        num_classes: Classes of the detector.
        with_masks: Whether masks are needed.

    Raises:
        ValueError: Anything else.
    """
    if targets is None:
        raise ValueError("training needs targets: call detector(images, targets), or .eval()")
    if not isinstance(targets, Sequence) or len(targets) != len(images):
        got = len(targets) if isinstance(targets, Sequence) else type(targets).__name__
        raise ValueError(f"expected {len(images)} targets, one an image, got {got}")
    keys = ("boxes", "labels", "masks") if with_masks else ("boxes", "labels")
    for i, target in enumerate(targets):
        _check_shapes(target, f"target {i}", keys, (images[i].shape[-2], images[i].shape[-1]))
    _check_values(targets, num_classes)
    device = images[0].device
    checked = []
    for target in targets:
        mine = {key: target[key].to(device, non_blocking=True) for key in keys}
        mine["boxes"] = mine["boxes"].float()
        checked.append(mine)
    return checked


def _check_shapes(
    target: Mapping[str, Tensor], where: str, keys: Sequence[str], image_size: tuple[int, int]
) -> None:
    if not isinstance(target, Mapping):
        raise ValueError(f"{where}: expected a dict of tensors, got {type(target).__name__}")
    for key in keys:
        if not isinstance(target.get(key), Tensor):
            given = ", ".join(map(str, target)) or "nothing"
            raise ValueError(f'{where}: expected a tensor "{key}", got {given}')
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(
            f"{where}: expected float boxes (N, 4), xyxy in pixels, got {boxes.dtype} "
            f"{tuple(boxes.shape)}"
        )
    if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{where}: expected int64 labels ({len(boxes)},), one a box, got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    if "masks" in keys:
        masks, expected = target["masks"], (len(boxes), *image_size)
        if tuple(masks.shape) != expected or masks.dtype not in (torch.uint8, torch.bool):
            raise ValueError(
                f"{where}: expected uint8 masks {expected}, one a box of the image's size, got "
                f"{masks.dtype} {tuple(masks.shape)}"
            )


def _check_values(targets: Sequence[Mapping[str, Tensor]], num_classes: int) -> None:
    boxes = torch.cat([target["boxes"].detach().float() for target in targets])
    labels = torch.cat([target["labels"] for target in targets])
    finite = boxes.isfinite().all(dim=1)
    positive = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    known = (labels >= 0) & (labels < num_classes)
    # One look at the device for all images.
    if bool((finite & positive & known).all()):
        return
    index = int((~(finite & positive & known)).nonzero()[0])
    places = [(i, j) for i, target in enumerate(targets) for j in range(len(target["boxes"]))]
    where = "target {}: box {}".format(*places[index])
    values = [round(v, 4) for v in boxes[index].tolist()]
    if not finite[index]:
        raise ValueError(f"{where} is not finite: {values}")
    if not positive[index]:
        raise ValueError(
            f"{where} has no area: {values}; expected x1 < x2 and y1 < y2 (xyxy, not xywh)"
        )
    raise ValueError(f"{where} has label {int(labels[index])}; expected 0 to {num_classes - 1}")

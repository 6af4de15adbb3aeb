"""Images and targets are checked at the door, normalised and padded."""

from typing import Any

import pytest
import torch
from torch import Tensor

from wavevit.detection.preprocess import Preprocess, check_images
from wavevit.detection.targets import check_targets

IMAGE = torch.zeros(3, 20, 30)


def target(**changes: Any) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([[1.0, 2, 5, 9], [0, 0, 30, 20]]),
        "labels": torch.tensor([0, 4]),
        "masks": torch.zeros(2, 20, 30, dtype=torch.uint8),
        **changes,
    }


def check(*targets: Any, with_masks: bool = True) -> list[dict[str, Tensor]]:
    return check_targets(list(targets), [IMAGE] * 2, num_classes=5, with_masks=with_masks)


def test_images_are_normalised_and_the_padding_is_zero() -> None:
    images = [torch.rand(3, 40, 70), torch.rand(3, 64, 31)]
    batch = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))(images)
    assert batch.tensor.shape == (2, 3, 64, 96)
    assert batch.sizes == [(40, 70), (64, 31)]
    assert batch.padded_sizes == [(64, 96), (64, 32)]
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    for padded, image, (h, w) in zip(batch.tensor, images, batch.sizes, strict=True):
        expected = (image - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(padded[:, :h, :w], expected)
        assert padded.count_nonzero() == expected.count_nonzero()


def test_the_published_normalisation_is_the_default() -> None:
    grey = Preprocess()(
        [torch.tensor([123.675, 116.28, 103.53])[:, None, None].expand(3, 2, 2) / 255]
    )
    assert grey.tensor.abs().max() < 1e-5


def test_half_precision_images_stay_so() -> None:
    assert Preprocess()([IMAGE.bfloat16()]).tensor.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "expected a list of at least one image"),
        (torch.zeros(2, 3, 8, 8), r"expected a list .* got a tensor \(2, 3, 8, 8\)"),
        ([IMAGE, "cat.jpg"], "image 1: expected a tensor .* got str"),
        ([torch.zeros(1, 8, 8)], r"image 0: expected \(3, H, W\), got \(1, 8, 8\)"),
        ([torch.zeros(3, 0, 8)], r"image 0: expected \(3, H, W\), got \(3, 0, 8\)"),
        ([IMAGE.to(torch.uint8)], "image 0: expected float .* divide by 255"),
        ([IMAGE, IMAGE.double()], "image 1 is torch.float64 .* give all in one dtype"),
    ],
)
def test_wrong_images_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_images(images)


def test_good_targets_pass_with_what_is_needed_of_them() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    first, second = check(target(image_id=torch.tensor(3)), empty, with_masks=False)
    assert first.keys() == second.keys() == {"boxes", "labels"}
    assert second["boxes"].shape == (0, 4)
    bool_masks = target(masks=torch.zeros(2, 20, 30, dtype=torch.bool))
    assert check(target(), bool_masks)[1].keys() == {"boxes", "labels", "masks"}
    half = target(boxes=torch.tensor([[1, 2, 5, 9], [0, 0, 8, 8]], dtype=torch.float16))
    assert check(half, half)[0]["boxes"].dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("boxes", "target 1: expected a dict of tensors, got str"),
        ({"boxes": torch.zeros(0, 4)}, 'target 1: expected a tensor "labels", got boxes'),
        (target(masks=None), 'target 1: expected a tensor "masks"'),
        (target(boxes=torch.zeros(2, 5)), r"target 1: expected float boxes \(N, 4\).* \(2, 5\)"),
        (target(boxes=torch.ones(2, 4).long()), r"expected float boxes .* torch.int64"),
        (target(labels=torch.tensor([1])), r"target 1: expected int64 labels \(2,\).* \(1,\)"),
        (target(labels=torch.tensor([1.0, 2])), "expected int64 labels .* got torch.float32"),
        (target(masks=torch.zeros(2, 9, 30, dtype=torch.uint8)), r"uint8 masks \(2, 20, 30\).* 9"),
        (target(masks=torch.zeros(2, 20, 30)), "expected uint8 masks .* torch.float32"),
        (target(labels=torch.tensor([0, 5])), "target 1: box 1 has label 5; expected 0 to 4"),
        (target(labels=torch.tensor([-1, 0])), "target 1: box 0 has label -1"),
        (
            target(boxes=torch.tensor([[0.0, 0, 1, 1], [0, 0, torch.nan, 1]])),
            "target 1: box 1 is not finite",
        ),
        (
            target(boxes=torch.tensor([[0.0, 0, 1, 1], [5, 5, 5, 9]])),
            r"target 1: box 1 has no area: \[5.0, 5.0, 5.0, 9.0\]; .* not xywh",
        ),
    ],
)
def test_wrong_targets_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(target(), wrong)


def test_targets_must_be_there_one_an_image() -> None:
    with pytest.raises(ValueError, match="expected 2 targets, one an image, got 1"):
        check(target())
    with pytest.raises(ValueError, match="expected 2 targets, one an image, got dict"):
        check_targets(target(), [IMAGE] * 2, num_classes=5, with_masks=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="training needs targets"):
        check_targets(None, [IMAGE], num_classes=5, with_masks=False)

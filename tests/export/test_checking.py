"""What counts as the same prediction, and what does not."""

import torch

from wavevit.detection.inference import FoundObjects
from wavevit.export.checking import compare_labels, compare_logits, compare_objects
from wavevit.segmentation.inference import LabelledPicture


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> FoundObjects:
    return FoundObjects(
        (40, 50),
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores),
    )


TWO = found([[1, 2, 20, 30], [5, 5, 15, 25]], [0, 1], [0.9, 0.4])


def test_logits_within_the_tolerance_pass_and_others_do_not() -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    assert compare_logits(logits, logits + 5e-4).passed
    found = compare_logits(logits, logits + 2e-3)
    assert not found.passed
    assert found.numbers["same"] == 4
    assert found.numbers["largest"] > 1e-3


def test_other_best_classes_fail_unless_they_are_as_good() -> None:
    ours = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0, -2.0]])
    swapped = ours[:, [1, 0, 2, 3, 4, 5]]
    assert compare_logits(ours, swapped).numbers["same"] == 0
    equal = torch.tensor([[3.0, 3.0 + 1e-4, 1.0, 0.0, -1.0, -2.0]])
    assert compare_logits(equal, equal[:, [1, 0, 2, 3, 4, 5]]).passed


def test_objects_are_matched_in_any_order() -> None:
    turned = TWO.take(torch.tensor([1, 0]))
    assert compare_objects([TWO], [turned], 0.05, 100).passed


def test_an_object_of_another_class_place_or_score_is_a_difference() -> None:
    boxes, labels, scores = TWO.boxes_xyxy.tolist(), TWO.labels.tolist(), TWO.scores.tolist()
    moved = [[b + 2.0 for b in boxes[0]], boxes[1]]
    for other in (
        found(moved, labels, scores),
        found(boxes, [2, 1], scores),
        found(boxes, labels, [0.9, 0.38]),
    ):
        compared = compare_objects([TWO], [other], 0.05, 100)
        assert not compared.passed
        assert compared.numbers["unmatched"] == 2  # one of each side


def test_an_object_at_the_threshold_may_come_or_go() -> None:
    alone = TWO.take(torch.tensor([0]))
    assert not compare_objects([TWO], [alone], 0.05, 100).passed
    assert compare_objects([TWO], [alone], 0.4, 100).passed
    assert compare_objects([TWO], [alone], 0.05, 2).passed  # a full image: the last of it


def test_images_without_objects_agree() -> None:
    nothing = found([], [], [])
    assert compare_objects([nothing, TWO], [nothing, TWO], 0.05, 100).passed
    uncompared = compare_objects([nothing], [nothing], 0.05, 100)
    assert not uncompared.passed
    assert "nothing to compare" in uncompared.text
    assert not compare_objects([nothing], [TWO], 0.05, 100).passed


def test_one_pixel_in_a_thousand_may_have_another_label() -> None:
    labels = torch.zeros(50, 40, dtype=torch.uint8)
    for changed, passes in ((2, True), (3, False)):
        other = labels.clone()
        other.view(-1)[:changed] = 1
        pictures = [[LabelledPicture(labels=each)] for each in (labels, other)]
        assert compare_labels(*pictures).passed is passes

"""The heads on pooled regions: shapes, initial values, targets and losses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from wavevit.detection import mask_head
from wavevit.detection.box_coder import DeltaBoxCoder
from wavevit.detection.box_head import BoxHead
from wavevit.detection.dynamic_head import DynamicConv, DynamicHead
from wavevit.detection.mask_head import MaskHead, mask_loss, mask_targets
from wavevit.detection.regions import (
    DetectionSettings,
    RegionSample,
    classification_loss,
    positive_regions,
    select_detections,
)
from wavevit.detection.roi_pooling import RoIPooling

K = 5


def test_box_head_gives_a_background_and_a_box_a_class() -> None:
    head = BoxHead(6, K, roi_size=3, num_convs=2, conv_channels=8, num_fcs=1, fc_channels=16)
    torch.nn.init.zeros_(head.fc_reg.weight)
    head.fc_reg.bias.data = torch.arange(4.0 * K)
    logits, deltas = head(torch.randn(4, 6, 3, 3))
    assert logits.shape == (4, K + 1)
    assert deltas.shape == (4, K, 4)
    assert deltas[3, 1].tolist() == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="at least 1 fully connected layer, got 0"):
        BoxHead(6, K, num_fcs=0)


def test_box_heads_start_as_published() -> None:
    torch.manual_seed(0)
    head = BoxHead(64, 80, fc_channels=256)
    assert head.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.fc_reg.weight.std().item() == pytest.approx(0.001, rel=0.05)
    for fc in head.fcs:
        assert fc.weight.abs().max() <= math.sqrt(6 / sum(fc.weight.shape))
    assert not any(p.any() for name, p in head.named_parameters() if name.endswith("bias"))


def test_one_classs_mask_logits_are_those_among_all_classes() -> None:
    torch.manual_seed(0)
    head = MaskHead(6, K, num_convs=2, conv_channels=8)
    torch.nn.init.normal_(head.logits.bias)
    pooled, labels = torch.randn(4, 6, 7, 7), torch.tensor([3, 0, 4, 3])
    every = head(pooled)
    assert every.shape == (4, K, 14, 14)
    torch.testing.assert_close(head(pooled, labels), every[torch.arange(4), labels])


def test_mask_targets_are_the_mask_seen_through_the_box() -> None:
    masks = torch.zeros(3, 40, 50, dtype=torch.uint8)
    masks[1, 10:30, 20:40] = 1
    boxes = torch.tensor([[20.0, 10, 40, 30], [0, 10, 40, 30], [30, 20, 80, 90], [0, 0, 4, 4]])
    found = mask_targets(masks, boxes, torch.tensor([1, 1, 1, 0]), 4)
    assert found.dtype == torch.float32
    assert found[0].all()
    assert found[1].tolist() == [[0, 0, 1, 1]] * 4
    # Clipped to the image first: [30, 20, 50, 40].
    assert found[2].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
    assert not found[3].any()
    assert mask_targets(masks, torch.zeros(0, 4), torch.zeros(0).long(), 28).shape == (0, 28, 28)


def test_mask_targets_of_crowded_images_are_made_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    masks = (torch.rand(9, 40, 50) > 0.5).to(torch.uint8)
    boxes = torch.cat([torch.rand(20, 2) * 20, 20 + torch.rand(20, 2) * 20], dim=1)
    of_region = torch.randint(1, 9, (20,))
    expected = mask_targets(masks, boxes, of_region, 14)
    most: list[int] = []

    def counted(floats: Tensor, *arguments: Any) -> Tensor:
        most.append(len(floats))
        return roi_align(floats, *arguments)

    monkeypatch.setattr(mask_head, "roi_align", counted)
    monkeypatch.setattr(mask_head, "_FLOAT_MASK_BYTES", 3 * 4 * 40 * 50)
    assert torch.equal(mask_targets(masks, boxes, of_region, 14), expected)
    assert len(most) > 1
    assert max(most) == 3


def sample(boxes: Tensor, labels: list[int], gt_index: list[int]) -> RegionSample:
    no = torch.zeros(len(boxes), dtype=torch.bool)
    return RegionSample(boxes, torch.tensor(gt_index).long(), torch.tensor(labels).long(), no)


def test_mask_loss_is_the_mean_over_all_cells_of_all_images() -> None:
    torch.manual_seed(0)
    head, pooling = MaskHead(6, K, num_convs=1, conv_channels=8), RoIPooling(7, (4,))
    levels = [torch.randn(2, 6, 10, 12)]
    box = torch.tensor([[4.0, 4, 30, 36], [0, 0, 9, 9]])
    samples = [sample(box, [2, K], [1]), sample(box, [0, 4], [0, 0])]
    targets = [
        {"masks": (torch.rand(2, 40, 48) > 0.5).to(torch.uint8)},
        {"masks": torch.ones(1, 40, 48, dtype=torch.bool)},
    ]
    loss = mask_loss(head, pooling, levels, samples, targets)
    one_by_one = [
        mask_loss(
            head,
            pooling,
            [level[i : i + 1] for level in levels],
            [sample(samples[i].boxes[j : j + 1], [label], [gt])],
            [targets[i]],
        )
        for i, j, label, gt in [(0, 0, 2, 1), (1, 0, 0, 0), (1, 1, 4, 0)]
    ]
    torch.testing.assert_close(loss, torch.stack(one_by_one).mean())


def test_without_positives_losses_are_zero_and_gradients_defined() -> None:
    head, pooling = MaskHead(6, K, num_convs=1, conv_channels=8), RoIPooling(7, (4,))
    background = sample(torch.rand(3, 4), [K] * 3, [])
    target = {"masks": torch.zeros(0, 40, 48, dtype=torch.uint8), "boxes": torch.zeros(0, 4)}
    loss = mask_loss(head, pooling, [torch.randn(1, 6, 10, 12)], [background], [target])
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    assert positive_regions(torch.zeros(3, K, 4), [background], [target]).deltas.shape == (0, 4)


def test_region_losses_look_at_the_true_class_and_divide_by_all_regions() -> None:
    samples = [sample(torch.rand(3, 4), [2, 1, K], [1, 0]), sample(torch.rand(1, 4), [K], [])]
    targets = [{"boxes": torch.rand(2, 4)}, {"boxes": torch.zeros(0, 4)}]
    logits = torch.randn(4, K + 1)
    expected = -logits.log_softmax(1)[torch.arange(4), torch.tensor([2, 1, K, K])].mean()
    torch.testing.assert_close(classification_loss(logits, samples), expected)
    deltas = torch.randn(4, K, 4)
    positives = positive_regions(deltas, samples, targets)
    assert torch.equal(positives.deltas, torch.stack([deltas[0, 2], deltas[1, 1]]))
    assert torch.equal(positives.gt_boxes, targets[0]["boxes"][[1, 0]])
    assert torch.equal(positives.boxes, samples[0].boxes[:2])


def test_detections_are_thresholded_clipped_and_thinned_per_class() -> None:
    regions = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [40, 40, 70, 70], [60, 0, 70, 9]])
    probabilities = torch.tensor(
        [
            [0.6, 0.3, 0.1],
            [0.5, 0.0, 0.5],  # the first's double
            [0.0, 0.7, 0.3],
            [0.9, 0.0, 0.1],  # outside the image
        ]
    )
    (found,) = select_detections(
        probabilities,
        torch.zeros(4, 2, 4),
        [regions],
        coder=DeltaBoxCoder(),
        sizes=[(50, 60)],
        settings=DetectionSettings(0.05, 0.5, 100),
    )
    assert found["labels"].tolist() == [1, 0, 1]
    torch.testing.assert_close(found["scores"], torch.tensor([0.7, 0.6, 0.3]))
    expected = torch.tensor([[40.0, 40, 60, 50], [0, 0, 10, 10], [0, 0, 10, 10]])
    torch.testing.assert_close(found["boxes"], expected)


def test_a_dynamic_convolution_is_its_proposals_own() -> None:
    """Against the plain loop over proposals."""
    torch.manual_seed(0)
    conv = DynamicConv(channels=6, inner_channels=2, roi_size=3)
    features, pooled = torch.randn(4, 6), torch.randn(4, 6, 3, 3)
    found = conv(features, pooled)
    for r in range(4):
        weights = conv.make_weights(features[r])
        cells = pooled[r].flatten(1).T
        hidden = conv.norm_in(cells @ weights[:12].view(6, 2)).relu()
        hidden = conv.norm_out(hidden @ weights[12:].view(2, 6)).relu()
        torch.testing.assert_close(found[r], conv.fc_norm(conv.fc(hidden.flatten())).relu())


def test_dynamic_heads_start_with_rare_objects() -> None:
    torch.manual_seed(0)
    head = DynamicHead(16, K, num_heads=2, inner_channels=4, ffn_channels=32, roi_size=3).eval()
    logits, deltas, features = head(torch.randn(2, 5, 16), torch.randn(10, 16, 3, 3))
    assert logits.shape == (2, 5, K)
    assert deltas.shape == (2, 5, 4)
    assert features.shape == (2, 5, 16)
    assert head.fc_cls.bias.sigmoid().mean().item() == pytest.approx(0.01)

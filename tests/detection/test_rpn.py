"""Proposals: which anchors are learned from, and which boxes come out."""

import pytest
import torch
from torch import Tensor

from wavevit.detection.max_iou_assigner import MaxIoUAssigner
from wavevit.detection.preprocess import ImageBatch
from wavevit.detection.proposal_sampler import RandomSampler
from wavevit.detection.rpn import ProposalSettings, Pyramid, RegionProposer, RPNHead

STRIDES = (8, 16)
ALL = 10**6


def proposer(**options: object) -> RegionProposer:
    defaults = {
        "for_training": ProposalSettings(50, 20),
        "for_testing": ProposalSettings(30, 10),
        "assigner": MaxIoUAssigner(0.7, 0.3, min_positive_iou=0.3),
        "sampler": RandomSampler(ALL, 0.5),
    }
    return RegionProposer(STRIDES, **defaults | options)


def batch_of(*sizes: tuple[int, int], canvas: tuple[int, int] = (64, 96)) -> ImageBatch:
    padded = [(-(-h // 32) * 32, -(-w // 32) * 32) for h, w in sizes]
    return ImageBatch(torch.zeros(len(sizes), 3, *canvas), list(sizes), padded)


def maps(batch: ImageBatch, seed: int = 0) -> Pyramid:
    generator = torch.Generator().manual_seed(seed)
    B, _, H, W = batch.tensor.shape
    sizes = [(B, H // s, W // s) for s in STRIDES]
    objectness = [torch.randn(B, 3, h, w, generator=generator) for B, h, w in sizes]
    deltas = [torch.randn(B, 12, h, w, generator=generator) * 0.1 for B, h, w in sizes]
    return Pyramid([], objectness, deltas)


def target(*boxes: list[float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4).float()}


def test_the_head_is_shared_by_all_levels_and_starts_small() -> None:
    torch.manual_seed(0)
    head = RPNHead(16, 3)
    levels = [torch.randn(2, 16, 6, 8), torch.randn(2, 16, 3, 4)]
    objectness, deltas = head(levels)
    assert [m.shape for m in objectness] == [(2, 3, 6, 8), (2, 3, 3, 4)]
    assert [m.shape for m in deltas] == [(2, 12, 6, 8), (2, 12, 3, 4)]
    assert head.conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
    torch.testing.assert_close(head(levels[1:])[1][0], deltas[1])


def test_proposals_are_the_best_boxes_inside_the_image_that_overlap_little() -> None:
    batch = batch_of((60, 90), (64, 50))
    pyramid = maps(batch)
    for training, most in ((True, 20), (False, 10)):
        found = proposer().proposals(pyramid, batch.sizes, training=training)
        for (boxes, scores), (height, width) in zip(found, batch.sizes, strict=True):
            assert 0 < len(boxes) <= most
            assert (scores.diff() <= 0).all()
            assert ((boxes >= 0) & (boxes <= torch.tensor([width, height] * 2))).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_proposals_box_and_score_are_its_anchors() -> None:
    """The only anchor with a good score, in its place among channels, rows and columns."""
    batch = batch_of((64, 96))
    pyramid = maps(batch)
    for objectness, deltas in zip(pyramid.objectness, pyramid.deltas, strict=True):
        objectness.fill_(-9)
        deltas.zero_()
    pyramid.objectness[1][0, 2, 3, 1] = 2.0  # ratio 2, row 3, column 1 of stride 16
    pyramid.deltas[1][0, 8:12, 3, 1] = torch.tensor([-0.1, 0.0, -2.0, -2.0])
    ((boxes, scores),) = proposer().proposals(pyramid, batch.sizes, training=False)
    width, height = 128 / 2**0.5, 128 * 2**0.5
    x, y = 16 - 0.1 * width, 48.0
    half_w, half_h = width * torch.e**-2 / 2, height * torch.e**-2 / 2
    expected = torch.tensor([x - half_w, y - half_h, x + half_w, y + half_h])
    torch.testing.assert_close(boxes[0], expected)
    torch.testing.assert_close(scores[0], torch.tensor(2.0).sigmoid())


def test_an_image_without_proposals_proposes_itself_in_training_only() -> None:
    batch = batch_of((60, 90))
    pyramid = maps(batch)
    for deltas in pyramid.deltas:
        deltas.fill_(torch.nan)
    (of_training,) = proposer().proposals(pyramid, batch.sizes, training=True)
    assert of_training.boxes.tolist() == [[0, 0, 90, 60]]
    (of_testing,) = proposer().proposals(pyramid, batch.sizes, training=False)
    assert of_testing.boxes.shape == (0, 4)


def test_losses_are_sums_over_the_number_of_sampled_anchors() -> None:
    """Against a plain loop: two images, one of which is smaller than the canvas."""
    batch = batch_of((64, 96), (30, 60))
    pyramid = maps(batch)
    targets = [target([10, 8, 70, 60], [40, 40, 70, 62]), target([4, 2, 50, 28])]
    losses = proposer(smooth_l1_beta=1 / 9).losses(pyramid, batch, targets)
    cls_loss, box_loss, count = 0.0, 0.0, 0
    expected = proposer()
    for i, (truth, padded) in enumerate(zip(targets, batch.padded_sizes, strict=True)):
        anchors = expected.anchors([(8, 12), (4, 6)])
        reached = expected.anchors.cells_inside(padded)
        logits, deltas, inside = [], [], []
        for level, (rows, columns) in enumerate(reached):
            objectness, delta = pyramid.objectness[level][i], pyramid.deltas[level][i]
            logits.append(objectness[:, :rows, :columns].permute(1, 2, 0).flatten())
            delta = delta.view(3, 4, *delta.shape[1:])[:, :, :rows, :columns]
            deltas.append(delta.permute(2, 3, 0, 1).reshape(-1, 4))
            grid = anchors[level].view(*objectness.shape[1:], 3, 4)
            inside.append(grid[:rows, :columns].reshape(-1, 4))
        logit, delta, anchor = torch.cat(logits), torch.cat(deltas), torch.cat(inside)
        matched = expected.assigner(anchor, truth["boxes"]).matched
        used, positive = matched != -2, matched >= 0
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        cls_loss += bce(logit[used], positive[used].float(), reduction="sum")
        wanted = expected.coder.encode(anchor[positive], truth["boxes"][matched[positive]])
        distance = (delta[positive] - wanted).abs()
        box_loss += torch.where(distance < 1 / 9, 4.5 * distance.square(), distance - 1 / 18).sum()
        count += int(used.sum())
    assert losses["loss_rpn_cls"].item() == pytest.approx(float(cls_loss) / count)
    assert losses["loss_rpn_box"].item() == pytest.approx(float(box_loss) / count)


def test_anchors_over_the_border_are_left_out_if_so_wished() -> None:
    batch = batch_of((64, 96))
    anchors = torch.cat(proposer().anchors([(8, 12), (4, 6)]))
    valid = proposer(only_inside=True)._valid_anchors(anchors, [(8, 12), (4, 6)], batch, 0)
    assert valid is not None
    kept = anchors[valid]
    assert 0 < len(kept) < len(anchors)
    assert ((kept >= 0) & (kept < torch.tensor([96.0, 64, 96, 64]))).all()
    assert proposer()._valid_anchors(anchors, [(8, 12), (4, 6)], batch, 0) is None


@pytest.mark.parametrize("only_inside", [False, True])
def test_images_without_objects_or_anchors_have_finite_losses(only_inside: bool) -> None:
    batch = batch_of((10, 10), (10, 10), canvas=(32, 32))
    pyramid = maps(batch)
    for of_level in (*pyramid.objectness, *pyramid.deltas):
        of_level.requires_grad_()
    losses = proposer(only_inside=only_inside).losses(pyramid, batch, [target(), target()])
    assert losses["loss_rpn_box"] == 0
    assert (losses["loss_rpn_cls"] == 0) == only_inside  # no anchor of 64 pixels fits into 10
    sum(losses.values()).backward()
    assert all(m.grad is not None for m in (*pyramid.objectness, *pyramid.deltas))

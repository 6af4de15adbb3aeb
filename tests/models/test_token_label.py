"""Mix-token, the targets and the loss (spec section 4.1)."""

import math

import timm
import torch

from wavevit.models.token_label import (
    TokenLabelLoss,
    dense_token_label_targets,
    draw_mix_box,
    swap_mix_box,
    token_label_targets,
)


def test_swap_exchanges_the_box_and_a_second_swap_undoes_it() -> None:
    features = torch.randn(3, 2, 16, 24)
    mixed = swap_mix_box(features, (0, 1, 2, 2), scale=8)
    assert torch.equal(mixed[:, :, 0:16, 8:16], features.flip(0)[:, :, 0:16, 8:16])
    assert torch.equal(mixed[:, :, :, :8], features[:, :, :, :8])
    assert torch.equal(swap_mix_box(mixed, (0, 1, 2, 2), scale=8), features)


def test_boxes_lie_on_the_grid_and_cover_half_of_it_on_average() -> None:
    torch.manual_seed(0)
    boxes = [draw_mix_box(100, 60) for _ in range(4000)]
    for r1, c1, r2, c2 in boxes:
        assert 0 <= r1 <= r2 <= 100
        assert 0 <= c1 <= c2 <= 60
    # E[1 - lam] = 1/2 for lam ~ Beta(1, 1), less what clipping at the border takes.
    mean = sum((r2 - r1) * (c2 - c1) for r1, c1, r2, c2 in boxes) / len(boxes) / 6000
    assert 0.25 < mean < 0.5


def test_loss_of_perfect_predictions_is_the_entropy_of_the_targets() -> None:
    B, K, N = 2, 5, 4
    target = torch.softmax(torch.randn(B, K, 2 + N), dim=1)
    box = (0, 0, 1, 1)
    lam = 1 - 1 / N
    cls_target = lam * target[:, :, 1] + (1 - lam) * target[:, :, 1].flip(0)
    output = (cls_target.log(), target[:, :, 2:].transpose(1, 2).log(), box)
    entropy = -(cls_target * cls_target.log()).sum(1).mean()
    token_entropy = -(target[:, :, 2:] * target[:, :, 2:].log()).sum(1).mean()
    torch.testing.assert_close(TokenLabelLoss()(output, target), entropy + 0.5 * token_entropy)


def test_token_logits_of_a_mixed_batch_belong_to_their_own_image() -> None:
    """Images that are alike everywhere give the same token logits mixed or not."""
    torch.manual_seed(0)
    model = timm.create_model("wavevit_test", token_label=True, num_classes=6).train()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eval()
    image = torch.randn(1, 3, 96, 96).repeat(2, 1, 1, 1)
    _, plain, _ = model(image, mix_box=(0, 0, 0, 0))
    _, mixed, box = model(image, mix_box=(1, 0, 3, 2))
    torch.testing.assert_close(mixed, plain)
    assert box == (1, 0, 3, 2)


def loop_targets(
    label: int, logits: torch.Tensor, classes: list[int], num_classes: int, smoothing: float
) -> list[list[float]]:
    """The 2 + N distributions of one image, number by number."""
    off = smoothing / num_classes
    rows = [[off] * num_classes]
    rows[0][label] = 1 - smoothing + off
    for token in logits.tolist():
        dense = [0.0] * num_classes
        for index, value in zip(classes, token, strict=True):
            dense[index] += value
        total = sum(math.exp(value) for value in dense)
        rows.append([math.exp(value) / total for value in dense])
    return rows


def test_targets_are_what_a_plain_loop_gives() -> None:
    B, K, N, U = 3, 7, 6, 4
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([6, 0, 3])
    logits = 3 * torch.randn(B, 1 + N, U, generator=generator, dtype=torch.float64)
    classes = torch.stack([torch.randperm(K, generator=generator)[:U] for _ in range(B)])
    targets = token_label_targets(labels, logits, classes, num_classes=K, smoothing=0.1)
    assert targets.shape == (B, K, 2 + N)
    for image in range(B):
        expected = loop_targets(int(labels[image]), logits[image], classes[image].tolist(), K, 0.1)
        torch.testing.assert_close(targets[image].T, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(targets.sum(1), torch.ones(B, 2 + N, dtype=torch.float64))


def test_padding_of_the_list_of_classes_changes_nothing() -> None:
    labels, classes = torch.tensor([1, 2]), torch.tensor([[4, 0, 3], [2, 1, 0]])
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    padded = token_label_targets(
        labels,
        torch.cat([logits, torch.zeros(2, 5, 4)], dim=2),
        torch.cat([classes, torch.zeros(2, 4, dtype=torch.int64)], dim=1),
        num_classes=5,
        smoothing=0.1,
    )
    plain = token_label_targets(labels, logits, classes, num_classes=5, smoothing=0.1)
    assert torch.equal(padded, plain)


def test_dense_logits_give_the_targets_of_the_same_logits_listed() -> None:
    B, K, H, W = 2, 5, 2, 3
    labels = torch.tensor([0, 4])
    logits = torch.randn(B, K, H, W, generator=torch.Generator().manual_seed(2))
    tokens = torch.stack([logits[:, :, i, j] for i in range(H) for j in range(W)], dim=1)
    listed = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
    classes = torch.arange(K).expand(B, K)
    expected = token_label_targets(labels, listed, classes, num_classes=K, smoothing=0.2)
    targets = dense_token_label_targets(labels, logits, smoothing=0.2)
    torch.testing.assert_close(targets, expected)


def test_targets_are_float32_under_autocast_and_from_half_precision() -> None:
    labels, classes = torch.tensor([1]), torch.tensor([[2, 0]])
    # 40 and 40.1 are one number in bfloat16.
    logits = torch.tensor([[[40.0, 40.1], [1.0, -2.0]]])
    expected = token_label_targets(labels, logits, classes, num_classes=3, smoothing=0.1)
    assert expected[0, 0, 1] > expected[0, 2, 1] + 0.02
    dense = torch.randn(1, 3, 2, 2)
    dense_expected = dense_token_label_targets(labels, dense, smoothing=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = token_label_targets(labels, logits, classes, num_classes=3, smoothing=0.1)
        dense_inside = dense_token_label_targets(labels, dense, smoothing=0.1)
    assert torch.equal(inside, expected)
    assert torch.equal(dense_inside, dense_expected)
    half = token_label_targets(labels, logits.half(), classes, num_classes=3, smoothing=0.1)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.sum(1), torch.ones(1, 3))


def test_targets_fit_the_loss() -> None:
    targets = token_label_targets(
        torch.tensor([1, 2]),
        torch.randn(2, 5, 3),
        torch.tensor([[4, 0, 3], [2, 1, 0]]),
        num_classes=6,
        smoothing=0.1,
    )
    output = (torch.randn(2, 6), torch.randn(2, 4, 6), (0, 0, 1, 2))
    assert TokenLabelLoss()(output, targets).isfinite()

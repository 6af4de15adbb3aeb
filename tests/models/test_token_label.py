"""Mix-token and its loss (spec section 4.1)."""

import timm
import torch

from wavevit.models.token_label import TokenLabelLoss, draw_mix_box, swap_mix_box


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

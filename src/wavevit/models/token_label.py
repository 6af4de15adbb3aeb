"""Token labeling (spec section 4.1): mix-token, the targets and the loss.

Legend: B batch, C channels, H W rows and columns, N tokens, K classes, U classes that an image's
label map names.
"""

import math

import torch
from torch import Tensor, nn

MixBox = tuple[int, int, int, int]
"""Rows and columns ``(r1, c1, r2, c2)`` on the stride-32 grid, ends exclusive."""


def draw_mix_box(rows: int, columns: int) -> MixBox:
    """Draws a CutMix box whose area is 1 - lam of the grid, lam ~ Beta(1, 1) (torch's generator).

    Args:
        rows: Rows of the stride-32 grid.
        columns: Columns of the stride-32 grid.
    """
    lam, u_row, u_column = torch.rand(3).tolist()  # Beta(1, 1) is the uniform distribution
    side = math.sqrt(1.0 - lam)
    half_h, half_w = int(rows * side) // 2, int(columns * side) // 2
    row, column = int(u_row * rows), int(u_column * columns)
    return (
        max(row - half_h, 0),
        max(column - half_w, 0),
        min(row + half_h, rows),
        min(column + half_w, columns),
    )


def swap_mix_box(features: Tensor, box: MixBox, *, scale: int) -> Tensor:
    """Inside the box, the batch flipped along its first dimension. Undone by a second call.

    Args:
        features: Map ``(B, C, H, W)``.
        box: On the stride-32 grid.
        scale: Pixels of the map per grid cell: 8 at stride 4, 1 at stride 32.
    """
    r1, c1, r2, c2 = (scale * edge for edge in box)
    mixed = features.clone()
    mixed[:, :, r1:r2, c1:c2] = features.flip(0)[:, :, r1:r2, c1:c2]
    return mixed


def token_label_targets(
    labels: Tensor, logits: Tensor, classes: Tensor, *, num_classes: int, smoothing: float
) -> Tensor:
    """The targets of `TokenLabelLoss` from cropped label maps.

    Args:
        labels: Ground truth, int64 ``(B,)``.
        logits: Of the teacher for the class token and the patch tokens, ``(B, 1 + N, U)``. Any
            class that an image does not list has logit 0.
        classes: Which class each of the U is, int64 ``(B, U)``. Images that list fewer are padded
            with logit 0 for any class.
        num_classes: K.
        smoothing: Mass of the ground truth that is spread over all classes, in [0, 1].

    Returns:
        ``(B, K, 2 + N)``, at least float32 also under autocast: smoothed ground truth, class-token
        target, token targets; each a distribution over K.
    """
    dense = logits.new_zeros((*logits.shape[:2], num_classes), dtype=_at_least_float32(logits))
    dense.scatter_add_(2, classes[:, None].expand_as(logits), logits.to(dense.dtype))
    return _targets(labels, dense, smoothing)


def dense_token_label_targets(labels: Tensor, logits: Tensor, *, smoothing: float) -> Tensor:
    """The targets of `TokenLabelLoss` from a teacher's logits for the very same view.

    The class token's logits are the mean over the map, as RoIAlign with one cell would give.

    Args:
        labels: Ground truth, int64 ``(B,)``.
        logits: ``(B, K, H, W)`` on the grid of the student's N = H * W tokens.
        smoothing: Mass of the ground truth that is spread over all classes, in [0, 1].

    Returns:
        ``(B, K, 2 + N)``, as `token_label_targets` gives.
    """
    tokens = logits.to(_at_least_float32(logits)).flatten(2).transpose(1, 2)
    return _targets(labels, torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1), smoothing)


def _at_least_float32(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _targets(labels: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """``(B, K, 2 + N)`` from the logits of all classes ``(B, 1 + N, K)``."""
    K = logits.shape[2]
    truth = torch.full_like(logits[:, :1], smoothing / K)
    truth.scatter_(2, labels[:, None, None], 1.0 - smoothing + smoothing / K)
    # Classes lie side by side in memory: that is the way the loss reads them.
    return torch.cat([truth, logits.softmax(dim=-1)], dim=1).transpose(1, 2)


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


class TokenLabelLoss(nn.Module):
    """Soft cross-entropy of the class logits plus half that of the token logits (section 4.1).

    Args:
        cls_weight: Weight of the class term.
        token_weight: Weight of the token term.
    """

    def __init__(self, cls_weight: float = 1.0, token_weight: float = 0.5) -> None:
        super().__init__()
        self.cls_weight = cls_weight
        self.token_weight = token_weight

    def forward(self, output: tuple[Tensor, Tensor, MixBox], target: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            output: What a token-label model returns in training: class logits ``(B, K)``, token
                logits ``(B, N, K)`` and the mix box.
            target: ``(B, K, 2 + N)``: smoothed ground truth, class-token target, token targets;
                each a distribution over K.
        """
        logits, token_logits, (r1, c1, r2, c2) = output
        num_tokens = token_logits.shape[1]
        lam = 1.0 - (r2 - r1) * (c2 - c1) / num_tokens
        cls_target = target[:, :, 1]
        cls_target = lam * cls_target + (1.0 - lam) * cls_target.flip(0)
        token_target = target[:, :, 2:].transpose(1, 2)
        return self.cls_weight * _soft_cross_entropy(
            logits, cls_target
        ) + self.token_weight * _soft_cross_entropy(token_logits, token_target)

"""Token labeling (spec section 4.1): mix-token and the loss.

Legend: B batch, C channels, H W rows and columns, N tokens, K classes.
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

"""A stage of Sparse R-CNN (arXiv 2011.12450, section 3.2): each proposal makes its own head.

Legend: B batch, P proposals of an image, R = B P regions, C channels of a proposal's feature and of
the pooled maps, D inner channels of the dynamic convolution, S side of the pooled square, K
classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavevit.detection.dense_head import PRIOR_PROBABILITY


class DynamicConv(nn.Module):
    """Two 1x1 convolutions over a region, their weights made from the proposal's feature.

    Args:
        channels: C.
        inner_channels: D.
        roi_size: S.
    """

    def __init__(self, channels: int, inner_channels: int, roi_size: int) -> None:
        super().__init__()
        self.channels = channels
        self.inner_channels = inner_channels
        self.make_weights = nn.Linear(channels, 2 * channels * inner_channels)
        self.norm_in = nn.LayerNorm(inner_channels)
        self.norm_out = nn.LayerNorm(channels)
        self.fc = nn.Linear(channels * roi_size**2, channels)
        self.fc_norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor, pooled: Tensor) -> Tensor:
        """Features ``(R, C)`` of the regions as their proposals see them.

        Args:
            features: ``(R, C)`` of the proposals.
            pooled: ``(R, C, S, S)``.
        """
        C, D = self.channels, self.inner_channels
        weight_in, weight_out = self.make_weights(features).split(C * D, dim=1)
        cells = pooled.flatten(2).transpose(1, 2)  # (R, S * S, C)
        hidden = F.relu(self.norm_in(torch.bmm(cells, weight_in.unflatten(1, (C, D)))))
        hidden = F.relu(self.norm_out(torch.bmm(hidden, weight_out.unflatten(1, (D, C)))))
        return F.relu(self.fc_norm(self.fc(hidden.flatten(1))))


def _linear_norm_relu(channels: int, num_layers: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            layer
            for _ in range(num_layers)
            for layer in (
                nn.Linear(channels, channels, bias=False),
                nn.LayerNorm(channels),
                nn.ReLU(inplace=True),
            )
        )
    )


class DynamicHead(nn.Module):
    """Proposals look at each other, then at their regions; class and box follow.

    Args:
        channels: C, a multiple of ``num_heads``.
        num_classes: K, without a background: each class has its own sigmoid.
        num_heads: Attention heads.
        inner_channels: D of the dynamic convolution.
        ffn_channels: Hidden width of the feed-forward network.
        roi_size: S.
        num_cls_fcs: Linear layers before the class logits.
        num_reg_fcs: Linear layers before the box deltas.
        dropout: Probability, in the attention and the feed-forward network.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        num_heads: int = 8,
        inner_channels: int = 64,
        ffn_channels: int = 2048,
        roi_size: int = 7,
        num_cls_fcs: int = 1,
        num_reg_fcs: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(channels, num_classes)
        self.fc_reg = nn.Linear(channels, 4)
        self.attention = nn.MultiheadAttention(channels, num_heads, dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(channels)
        self.dynamic_conv = DynamicConv(channels, inner_channels, roi_size)
        self.dynamic_norm = nn.LayerNorm(channels)
        self.ffn = nn.Sequential(
            nn.Linear(channels, ffn_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(ffn_channels, channels),
            nn.Dropout(dropout),
        )
        self.ffn_norm = nn.LayerNorm(channels)
        self.cls_layers = _linear_norm_relu(channels, num_cls_fcs)
        self.reg_layers = _linear_norm_relu(channels, num_reg_fcs)
        self._init_weights()

    def _init_weights(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.fc_cls.bias, math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY)))

    def forward(self, features: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits ``(B, P, K)``, box deltas ``(B, P, 4)`` and new features ``(B, P, C)``.

        Args:
            features: ``(B, P, C)`` of the proposals.
            pooled: ``(B * P, C, S, S)`` of their boxes, image after image.
        """
        attended, _ = self.attention(features, features, features, need_weights=False)
        features = self.attention_norm(features + attended)
        seen = self.dynamic_conv(features.flatten(0, 1), pooled)
        features = self.dynamic_norm(features + seen.unflatten(0, features.shape[:2]))
        features = self.ffn_norm(features + self.ffn(features))
        logits = self.fc_cls(self.cls_layers(features))
        return logits, self.fc_reg(self.reg_layers(features)), features

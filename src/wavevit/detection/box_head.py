"""Class and box of a pooled region: the second stage of Faster, Mask and Cascade R-CNN.

Legend: R regions, C channels, S side of the pooled square, K classes.
"""

from itertools import pairwise

from torch import Tensor, nn

from wavevit.layers.conv_norm import ConvNormReLU


class BoxHead(nn.Module):
    """Class logits and class-specific box deltas of regions.

    Two fully connected layers (Faster R-CNN with FPN, arXiv 1612.03144, section 4.2), or
    convolutions and one (Cascade R-CNN's strong head, arXiv 1906.09756).

    Args:
        in_channels: Channels C of the pooled features.
        num_classes: Classes K without the background.
        roi_size: Side S of the pooled square.
        num_convs: 3x3 convolutions with BatchNorm before the fully connected layers.
        conv_channels: Their width.
        num_fcs: Fully connected layers, at least one.
        fc_channels: Their width.

    Raises:
        ValueError: No fully connected layer.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        roi_size: int = 7,
        num_convs: int = 0,
        conv_channels: int = 256,
        num_fcs: int = 2,
        fc_channels: int = 1024,
    ) -> None:
        super().__init__()
        if num_fcs < 1:
            raise ValueError(f"the box head needs at least 1 fully connected layer, got {num_fcs}")
        self.num_classes = num_classes
        self.fc_cls = nn.Linear(fc_channels, num_classes + 1)
        self.fc_reg = nn.Linear(fc_channels, 4 * num_classes)
        channels = [in_channels] + [conv_channels] * num_convs
        self.convs = nn.Sequential(
            *(ConvNormReLU(c_in, c_out, 3) for c_in, c_out in pairwise(channels))
        )
        widths = [channels[-1] * roi_size**2] + [fc_channels] * num_fcs
        fcs = [nn.Linear(c_in, c_out) for c_in, c_out in pairwise(widths)]
        self.fcs = nn.ModuleList(fcs)
        self.act = nn.ReLU(inplace=True)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        for fc in fcs:
            nn.init.xavier_uniform_(fc.weight)
        for fc in (self.fc_cls, self.fc_reg, *fcs):
            nn.init.zeros_(fc.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits ``(R, K + 1)``, background last, and box deltas ``(R, K, 4)``.

        Args:
            pooled: ``(R, C, S, S)``.
        """
        hidden = self.convs(pooled).flatten(1)
        for fc in self.fcs:
            hidden = self.act(fc(hidden))
        return self.fc_cls(hidden), self.fc_reg(hidden).unflatten(1, (self.num_classes, 4))

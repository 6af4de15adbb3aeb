"""The auxiliary head (Long et al. 2015, "Fully convolutional networks", arXiv 1411.4038).

Legend: B batch, C channels, H W rows and columns of a map, K classes.
"""

from torch import Tensor, nn

from wavevit.layers.conv_norm import ConvNormReLU


class FCNHead(nn.Module):
    """One 3x3 convolution and class logits, on one map of the backbone.

    Args:
        in_channels: Channels C of the map.
        num_classes: Classes K.
        channels: Width of the convolution.
        dropout: Share of channels that are dropped before the classifier, in training.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvNormReLU(in_channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Class logits ``(B, K, H, W)``.

        Args:
            features: Maps ``(B, C, H, W)``.
        """
        return self.classifier(self.dropout(self.conv(features)))


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution to class logits, with the published initial weights.

    Args:
        channels: Channels in.
        num_classes: Classes K.
    """
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

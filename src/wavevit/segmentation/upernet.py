"""UPerNet (Xiao et al. 2018, "Unified perceptual parsing", arXiv 1807.10221).

Legend: B batch, C channels, H W rows and columns of a map or an image, K classes.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from wavevit.layers.conv_norm import ConvNormReLU
from wavevit.models.option_checks import (
    check_all_positive,
    check_share,
    check_switch,
    check_weight,
    check_whole,
)
from wavevit.models.pyramid_backbone import PyramidBackbone
from wavevit.segmentation.fcn_head import FCNHead, classifier
from wavevit.segmentation.fusion_conv import FusionConv
from wavevit.segmentation.losses import DiceLoss, LossAverage, PixelCrossEntropy
from wavevit.segmentation.pyramid_pooling import PyramidPooling
from wavevit.segmentation.resize import in_full_precision, resize_bilinear
from wavevit.segmentation.segmenter import Segmenter

# Which of the backbone's four maps the auxiliary head reads: the one at stride 16.
AUXILIARY_MAP = 2


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down pyramid, and all its levels merged.

    Args:
        in_channels: Channels of the backbone's maps, finest first.
        num_classes: Classes K.
        channels: Channels of every level.
        pool_sizes: Sides of the pooled squares.
        dropout: Share of channels that are dropped before the classifier, in training.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int,
        pool_sizes: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.laterals = nn.ModuleList(ConvNormReLU(c, channels, 1) for c in finer)
        self.pooling = PyramidPooling(coarsest, channels, pool_sizes)
        self.outputs = nn.ModuleList(ConvNormReLU(channels, channels, 3) for _ in finer)
        self.fusion = FusionConv(channels, len(in_channels))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class logits ``(B, K, H, W)`` at the size of the finest map.

        Args:
            features: The backbone's maps, finest first.
        """
        merged = self.pooling(features[-1])
        levels = [merged]
        for i in reversed(range(len(self.laterals))):
            lateral = self.laterals[i](features[i])
            merged = lateral + resize_bilinear(merged, lateral.shape[-2:])
            levels.insert(0, self.outputs[i](merged))
        return self.classifier(self.dropout(self.fusion(levels)))


class UPerNetwork(nn.Module):
    """Backbone and heads as one module: a tensor in, tensors out.

    Args:
        backbone: Images to maps.
        head: Maps to class logits.
        auxiliary: One map to class logits, in training; None: there is no such head.
    """

    def __init__(self, backbone: nn.Module, head: UPerHead, auxiliary: FCNHead | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary = auxiliary

    def forward(self, images: Tensor) -> Any:
        """Class logits ``(B, K, H, W)``, float32.

        In training mode those at the finest map's size, with those of the auxiliary head, at its
        map's size, or None.

        Args:
            images: Normalised images ``(B, 3, H, W)``.
        """
        features = self.backbone(images)
        logits = in_full_precision(self.head(features))
        if not self.training:
            return resize_bilinear(logits, images.shape[-2:])
        if self.auxiliary is None:
            return logits, None
        return logits, in_full_precision(self.auxiliary(features[AUXILIARY_MAP]))


class UPerNet(Segmenter):
    """Segmenter that sees the whole scene and its finest map at once.

    Its heads have BatchNorms, which are trained: a process needs at least two images, or the norms
    be synchronised over processes.

    Args:
        backbone: Gives maps at strides 4 to 32.
        num_classes: Classes K, 1 to 255.
        channels: Channels of the pyramid.
        pool_sizes: Sides of the squares that the coarsest map is pooled to.
        dropout: Share of channels that are dropped before both classifiers, in training.
        auxiliary: Trains a second head, on the map at stride 16; it is not used in evaluation.
        auxiliary_channels: Its width.
        auxiliary_weight: Factor of its loss.
        class_weights: Factor of each class's pixels in the cross-entropies; None: 1.
        loss_average: "all_pixels", as published: cross-entropies are divided by the number of
            pixels, ignored ones included. "valid_pixels": by the weights of those that count.
        dice_weight: Factor of the Dice loss of the main head; 0: there is none.
        ohem_threshold: Only pixels whose true class has less than this probability count in the
            cross-entropies, which are divided by their number; None: all count.
        ohem_min_kept: The hardest pixels, so many an image on average, count in any case.

    Attributes:
        network: Backbone and heads: what is exported and compiled.

    Raises:
        ValueError: A value that does not fit.
    """

    network: UPerNetwork

    def __init__(
        self,
        backbone: PyramidBackbone,
        num_classes: int,
        *,
        channels: int = 512,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary: bool = True,
        auxiliary_channels: int = 256,
        auxiliary_weight: float = 0.4,
        class_weights: Sequence[float] | None = None,
        loss_average: LossAverage = "all_pixels",
        dice_weight: float = 0.0,
        ohem_threshold: float | None = None,
        ohem_min_kept: int = 100_000,
    ) -> None:
        super().__init__(backbone, num_classes)
        check_whole(1, channels=channels, auxiliary_channels=auxiliary_channels)
        check_weight(auxiliary_weight=auxiliary_weight, dice_weight=dice_weight)
        check_share(dropout=dropout)
        check_switch(auxiliary=auxiliary)
        check_all_positive(pool_sizes=pool_sizes)
        check_whole(1, **{f"pool_sizes[{i}]": size for i, size in enumerate(pool_sizes)})
        self.network = UPerNetwork(
            backbone,
            UPerHead(backbone.channels, num_classes, channels, pool_sizes, dropout),
            FCNHead(backbone.channels[AUXILIARY_MAP], num_classes, auxiliary_channels, dropout)
            if auxiliary
            else None,
        )
        self.auxiliary_weight = auxiliary_weight
        self.dice_weight = dice_weight
        self.cross_entropy = PixelCrossEntropy(
            num_classes,
            class_weights=class_weights,
            average=loss_average,
            ohem_threshold=ohem_threshold,
            ohem_min_kept=ohem_min_kept,
        )
        self.dice = DiceLoss()

    def compute_losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Scalar losses, fp32: "decode_ce" and, if asked for, "decode_dice" and "aux_ce".

        Args:
            images: Normalised images ``(B, 3, H, W)``.
            labels: Checked label map, int64 ``(B, H, W)``.

        Raises:
            ValueError: One image, whose pooling to one cell BatchNorm cannot normalise.
        """
        pooling = self.network.head.pooling
        alone = any(
            size == 1 and isinstance(projection.norm, nn.BatchNorm2d)
            for size, projection in zip(pooling.pool_sizes, pooling.projections, strict=True)
        )
        if len(images) == 1 and alone:
            raise ValueError(
                "UPerNet normalises what it pools to a single cell over the batch: training needs "
                "at least 2 images a process, or synchronised BatchNorms; got 1"
            )
        logits, auxiliary_logits = self.network(images)
        losses = {"decode_ce": self.cross_entropy(logits, labels)}
        if self.dice_weight:
            losses["decode_dice"] = self.dice_weight * self.dice(logits, labels)
        if auxiliary_logits is not None:
            loss = self.cross_entropy(auxiliary_logits, labels)
            losses["aux_ce"] = self.auxiliary_weight * loss
        return losses

"""Semantic segmenters on any pyramid backbone."""

from wavevit.segmentation.factory import SEGMENTERS, create_segmenter
from wavevit.segmentation.segmenter import Segmenter

__all__ = ["SEGMENTERS", "Segmenter", "create_segmenter"]

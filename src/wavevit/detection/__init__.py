"""Object detectors and instance segmenters on any pyramid backbone."""

from wavevit.detection.detector import Detector
from wavevit.detection.factory import DETECTORS, create_detector

__all__ = ["DETECTORS", "Detector", "create_detector"]

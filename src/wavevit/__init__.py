"""Wave-ViT: a wavelet vision transformer backbone inside timm.

Importing the package registers its models: ``timm.create_model("wavevit_s")``.
"""

from wavevit import explain, layers
from wavevit.detection.factory import create_detector
from wavevit.models import wave_vit as _wave_vit  # registers the models with timm
from wavevit.models.folding import fuse
from wavevit.models.weights import load_weights
from wavevit.ops.dwt import dwt2, idwt2
from wavevit.segmentation.factory import create_segmenter

__version__ = "0.1.0.dev0"

__all__ = [
    "__version__",
    "create_detector",
    "create_segmenter",
    "dwt2",
    "explain",
    "fuse",
    "idwt2",
    "layers",
    "load_weights",
]

del _wave_vit

"""What a network looks at: attention, Grad-CAM, receptive fields, energy of sub-bands.

Everything here returns tensors; `wavevit.pictures` has the pictures of them. Stages are numbered
from 0, as in Python, and negative numbers count from the last one. A model comes back as it was:
modes, gradients and hooks. It must not be run by another thread meanwhile.
"""

from wavevit.explain.attention import attention_map, class_token_attention
from wavevit.explain.grad_cam import grad_cam
from wavevit.explain.receptive_field import central_side, effective_receptive_field
from wavevit.explain.subbands import SubbandEnergy, image_subband_energy, subband_energy

__all__ = [
    "SubbandEnergy",
    "attention_map",
    "central_side",
    "class_token_attention",
    "effective_receptive_field",
    "grad_cam",
    "image_subband_energy",
    "subband_energy",
]

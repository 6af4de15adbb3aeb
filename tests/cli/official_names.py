"""State dicts as the official code would have written them: the way back of our tables of names."""

import re

import torch
from torch import Tensor

from wavevit.detection.detector import Detector
from wavevit.models import official
from wavevit.segmentation import Segmenter

HAAR = {
    "w_ll": [[0.5, 0.5], [0.5, 0.5]],
    "w_lh": [[0.5, 0.5], [-0.5, -0.5]],
    "w_hl": [[0.5, -0.5], [0.5, -0.5]],
    "w_hh": [[0.5, -0.5], [-0.5, 0.5]],
}


# Ours to theirs.
DETECTOR_PARTS = [
    (r"^network\.neck\.laterals\.(\d)\.", r"neck.lateral_convs.\1.conv."),
    (r"^network\.neck\.outputs\.(\d)\.", r"neck.fpn_convs.\1.conv."),
    (r"^network\.rpn_head\.conv\.", r"rpn_head.rpn_conv."),
    (r"^network\.rpn_head\.objectness\.", r"rpn_head.rpn_cls."),
    (r"^network\.rpn_head\.deltas\.", r"rpn_head.rpn_reg."),
    (r"^box_head\.fcs\.", r"roi_head.bbox_head.shared_fcs."),
    (r"^box_head\.", r"roi_head.bbox_head."),
    (r"^mask_head\.convs\.(\d)\.", r"roi_head.mask_head.convs.\1.conv."),
    (r"^mask_head\.logits\.", r"roi_head.mask_head.conv_logits."),
    (r"^mask_head\.", r"roi_head.mask_head."),
    (r"^network\.head\.cls_tower\.(\d)\.conv\.", r"bbox_head.cls_convs.\1.conv."),
    (r"^network\.head\.box_tower\.(\d)\.conv\.", r"bbox_head.reg_convs.\1.conv."),
    (r"^network\.head\.cls_tower\.(\d)\.norm\.", r"bbox_head.cls_convs.\1.gn."),
    (r"^network\.head\.box_tower\.(\d)\.norm\.", r"bbox_head.reg_convs.\1.gn."),
    (r"^network\.head\.scales\.(\d)\.", r"bbox_head.scales.\1."),
    (r"^network\.head\.cls_logits\.", r"bbox_head.gfl_cls."),
    (r"^network\.head\.box_output\.", r"bbox_head.gfl_reg."),
    (r"^network\.backbone\.body\.", r"backbone."),
]
BACKBONE_PARTS = [
    (r"stages_(\d)\.patch_embed\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
    (r"stages_(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
    (r"stages_(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
    (r"backbone\.norm\.", "backbone.norm4."),
    (r"\.attn\.reduce\.", ".attn.reduce.0."),
    (r"\.attn\.reduce_norm\.", ".attn.reduce.1."),
    (r"\.attn\.filter\.", ".attn.filter.0."),
    (r"\.attn\.filter_norm\.", ".attn.filter.1."),
    (r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),
]
SEGMENTER_PARTS = {
    "network.head.pooling.projections.": "decode_head.psp_modules.",
    "network.head.pooling.merge.": "decode_head.bottleneck.",
    "network.head.laterals.": "decode_head.lateral_convs.",
    "network.head.outputs.": "decode_head.fpn_convs.",
    "network.head.fusion.": "decode_head.fpn_bottleneck.",
    "network.head.classifier.": "decode_head.conv_seg.",
    "network.auxiliary.conv.": "auxiliary_head.convs.0.",
    "network.auxiliary.classifier.": "auxiliary_head.conv_seg.",
    "network.backbone.body.": "backbone.",
}


def classifier_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict as the official code would have written it, wavelet buffers included."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        new = re.sub(
            r"^stages\.(\d)\.(patch_embed|norm)\.",
            lambda m: f"{m[2]}{int(m[1]) + 1}.",
            name,
        )
        new = re.sub(r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}.", new)
        new = re.sub(r"^norm\.", "norm4.", new)
        new = re.sub(r"^class_attn\.(norm\d|mlp)\.", r"post_network.0.\1.", new)
        new = re.sub(r"^class_attn\.", "post_network.0.attn.", new)
        block = name.partition(".attn.")[0]
        if f"{block}.attn.kv_norm.weight" in state:
            new = new.replace(".attn.kv.", ".attn.kv.1.")
        for ours, theirs in (
            (".attn.kv_norm.", ".attn.kv.0."),
            (".attn.reduce.", ".attn.reduce.0."),
            (".attn.reduce_norm.", ".attn.reduce.1."),
            (".attn.filter.", ".attn.filter.0."),
            (".attn.filter_norm.", ".attn.filter.1."),
            (".mlp.dwconv.", ".mlp.dwconv.dwconv."),
        ):
            new = new.replace(ours, theirs)
        assert official.our_name(new) == name
        is_matrix = new.endswith(".attn.reduce.0.weight") and value.ndim == 2
        result[new] = value[:, :, None, None] if is_matrix else value
        if is_matrix:
            prefix = new.removesuffix("reduce.0.weight")
            for leaf, filters in HAAR.items():
                result[f"{prefix}dwt.{leaf}"] = torch.tensor(filters)[None, None].half()
            result[f"{prefix}idwt.filters"] = torch.tensor(list(HAAR.values()))[:, None].half()
    return result


def detector_state(detector: Detector) -> dict[str, Tensor]:
    """A detector's state dict as mmdetection would have written it."""
    state = detector.state_dict()
    laterals = len({name for name in state if re.match(r"^network\.neck\.laterals\.\d\.w", name)})
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        new = re.sub(
            r"^network\.neck\.extra\.(\d)\.",
            lambda m: f"neck.fpn_convs.{laterals + int(m[1])}.conv.",
            name,
        )
        for ours, theirs in DETECTOR_PARTS:
            new, count = re.subn(ours, theirs, new)
            if count:
                break
        if "patch_embed" in "".join(state):
            if re.sub(r"\.kv\.(weight|bias)$", r".kv_norm.\1", name) != name and (
                re.sub(r"\.kv\.(weight|bias)$", r".kv_norm.\1", name) in state
            ):
                new = new.replace(".attn.kv.", ".attn.kv.1.")
            new = new.replace(".attn.kv_norm.", ".attn.kv.0.")
            for ours, theirs in BACKBONE_PARTS:
                new = re.sub(ours, theirs, new)
        value = value.clone()
        if new.endswith(".attn.reduce.0.weight") and value.ndim == 2:
            value = value[:, :, None, None]
            prefix = new.removesuffix("reduce.0.weight")
            for leaf, filters in HAAR.items():
                result[f"{prefix}dwt.{leaf}"] = torch.tensor(filters)[None, None].half()
            result[f"{prefix}idwt.filters"] = torch.tensor(list(HAAR.values()))[:, None].half()
        result[new] = value
    if "bbox_head.gfl_reg.weight" in result:
        result["bbox_head.integral.project"] = torch.linspace(0, 16, 17)
    return result


def segmenter_state(segmenter: Segmenter) -> dict[str, Tensor]:
    """A segmenter's state dict as mmsegmentation would have written it."""
    state = {}
    for name, value in segmenter.state_dict().items():
        ours, theirs = next((o, t) for o, t in SEGMENTER_PARTS.items() if name.startswith(o))
        rest = name.removeprefix(ours).replace("norm.", "bn.")
        if "psp_modules" in theirs:  # the projection follows a pooling
            rest = rest.replace(".", ".1.", 1)
        state[theirs + rest] = value.clone()
    return state

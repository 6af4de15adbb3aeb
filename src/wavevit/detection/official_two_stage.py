"""Names of mmdetection's two-stage and sparse detectors, and ours, by our class's name."""

import re

from wavevit.detection.official import Renames

_RPN: Renames = [
    (re.compile(r"^rpn_head\.rpn_conv\."), "network.rpn_head.conv."),
    (re.compile(r"^rpn_head\.rpn_cls\."), "network.rpn_head.objectness."),
    (re.compile(r"^rpn_head\.rpn_reg\."), "network.rpn_head.deltas."),
]

# Without a number there is one head, with a number one a stage.
_MASK_RCNN: Renames = [
    *_RPN,
    (re.compile(r"^roi_head\.bbox_head\.shared_fcs\.(\d+)\."), r"box_head.fcs.\1."),
    (re.compile(r"^roi_head\.bbox_head\."), "box_head."),
    (re.compile(r"^roi_head\.mask_head\.convs\.(\d+)\.conv\."), r"mask_head.convs.\1."),
    (re.compile(r"^roi_head\.mask_head\.conv_logits\."), "mask_head.logits."),
    (re.compile(r"^roi_head\.mask_head\."), "mask_head."),
]

_BOX_STAGE = r"^roi_head\.bbox_head\.(\d+)\."
_MASK_STAGE = r"^roi_head\.mask_head\.(\d+)\."
_CASCADE: Renames = [
    *_RPN,
    (re.compile(_BOX_STAGE + r"shared_convs\.(\d+)\.conv\."), r"box_heads.\1.convs.\2.conv."),
    (re.compile(_BOX_STAGE + r"shared_convs\.(\d+)\.bn\."), r"box_heads.\1.convs.\2.norm."),
    (re.compile(_BOX_STAGE + r"shared_fcs\.(\d+)\."), r"box_heads.\1.fcs.\2."),
    (re.compile(_BOX_STAGE), r"box_heads.\1."),
    (re.compile(_MASK_STAGE + r"convs\.(\d+)\.conv\."), r"mask_heads.\1.convs.\2."),
    (re.compile(_MASK_STAGE + r"conv_logits\."), r"mask_heads.\1.logits."),
    (re.compile(_MASK_STAGE), r"mask_heads.\1."),
]

_CONV = "instance_interactive_conv"
_SPARSE: Renames = [
    (re.compile(r"^rpn_head\.init_proposal_bboxes\.weight$"), "proposals.boxes"),
    (re.compile(r"^rpn_head\.init_proposal_features\.weight$"), "proposals.features"),
    (re.compile(_BOX_STAGE + r"attention\.attn\."), r"heads.\1.attention."),
    (re.compile(_BOX_STAGE + rf"{_CONV}\.dynamic_layer\."), r"heads.\1.dynamic_conv.make_weights."),
    (re.compile(_BOX_STAGE + rf"{_CONV}\.fc_layer\."), r"heads.\1.dynamic_conv.fc."),
    (re.compile(_BOX_STAGE + rf"{_CONV}\."), r"heads.\1.dynamic_conv."),
    (re.compile(_BOX_STAGE + rf"{_CONV}_norm\."), r"heads.\1.dynamic_norm."),
    (re.compile(_BOX_STAGE + r"ffn\.layers\.0\.0\."), r"heads.\1.ffn.0."),
    (re.compile(_BOX_STAGE + r"ffn\.layers\.1\."), r"heads.\1.ffn.3."),
    (re.compile(_BOX_STAGE + r"(cls|reg)_fcs\."), r"heads.\1.\2_layers."),
    (re.compile(_BOX_STAGE), r"heads.\1."),
]

RENAMES: dict[str, Renames] = {
    "MaskRCNN": _MASK_RCNN,
    "CascadeMaskRCNN": _CASCADE,
    "SparseRCNN": _SPARSE,
}

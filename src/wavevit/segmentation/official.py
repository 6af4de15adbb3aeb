"""Names of mmsegmentation's checkpoints of UPerNet, and ours."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from wavevit.models.adapted_loading import drop_other_classes
from wavevit.models.official_backbones import PREFIX, our_backbone

# Patterns of official names and what ours are made of; the first match wins.
_LAYERS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"^decode_head\.psp_modules\.(\d+)\.1\."), r"network.head.pooling.projections.\1."),
    (re.compile(r"^decode_head\.bottleneck\."), "network.head.pooling.merge."),
    (re.compile(r"^decode_head\.lateral_convs\.(\d+)\."), r"network.head.laterals.\1."),
    (re.compile(r"^decode_head\.fpn_convs\.(\d+)\."), r"network.head.outputs.\1."),
    (re.compile(r"^decode_head\.fpn_bottleneck\."), "network.head.fusion."),
    (re.compile(r"^decode_head\.conv_seg\."), "network.head.classifier."),
    (re.compile(r"^auxiliary_head\.convs\.0\."), "network.auxiliary.conv."),
    (re.compile(r"^auxiliary_head\.conv_seg\."), "network.auxiliary.classifier."),
]
_NORM = re.compile(r"\.bn\.")
# Our layers whose rows follow from the number of classes.
_CLASS_LAYERS = re.compile(r"^network\.(?:head|auxiliary)\.classifier\.")


def is_official(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has mmsegmentation's names.

    Args:
        state: Entries by name, without wrappings.
    """
    return any(name.startswith("decode_head.") for name in state)


def adapt(segmenter: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint's entries under our names, and what was left out.

    Only layers of another number of classes are left out.

    Args:
        segmenter: The segmenter that they are for; not changed.
        state: Official or our names, without wrappings.

    Returns:
        The entries to load, and the names of those left out.

    Raises:
        ValueError: A wavelet buffer does not hold the Haar filters.
    """
    entries = our_state(segmenter, state) if is_official(state) else dict(state)
    return drop_other_classes(segmenter, entries, _CLASS_LAYERS)


def our_state(segmenter: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's entries under our names; what is not known keeps its own.

    Args:
        segmenter: The segmenter that they are for; not changed.
        state: Official names, without wrappings.

    Raises:
        ValueError: A wavelet buffer does not hold the Haar filters.
    """
    renamed = our_backbone(segmenter, state)
    for name, value in state.items():
        if not name.startswith(PREFIX):
            renamed[_our_name(name)] = value
    return renamed


def _our_name(name: str) -> str:
    for pattern, replacement in _LAYERS:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return _NORM.sub(".norm.", renamed)
    return name

"""``wavevit convert`` for checkpoints of mmsegmentation."""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from wavevit.cli.official_conversion import (
    ConversionOptions,
    check_class_count,
    check_origin,
    edges,
    read_class_names,
    report_lines,
    size_rule,
    write_converted,
)
from wavevit.data.segmentation.palette import class_palette
from wavevit.models.official_files import OfficialFile
from wavevit.models.weights import LoadReport
from wavevit.segmentation import ade20k
from wavevit.segmentation.card import SegmenterCard
from wavevit.segmentation.official import our_state
from wavevit.segmentation.recognise import recognise

_OFFICIAL_EDGES = (512, 2048)
# In a configuration: 0 has no class in the label maps that it was trained on.
_REDUCED = re.compile(r"reduce_zero_label['\"]?\s*[=:]\s*True")


class _Classes(NamedTuple):
    names: list[str]
    palette: list[list[int]]
    reduce_zero_label: bool


def convert_segmenter(
    source: Path, target: Path, file: OfficialFile, options: ConversionOptions
) -> tuple[SegmenterCard, LoadReport]:
    """Writes a segmenter's weights under our names, with a card.

    Args:
        source: File that was read, for messages.
        target: File to write.
        file: Its content.
        options: What the user says of it.

    Returns:
        What was recognised, and what became of every entry.

    Raises:
        ValueError: Another segmenter than said, classes without names, or entries that do not fit.
    """
    found = recognise(file.state)
    check_origin(source, file, found.name, options.model)
    classes = _classes(source, file, found.num_classes, options.class_names)
    short, long = edges(options, _OFFICIAL_EDGES)
    card = SegmenterCard(
        segmenter=found.name,
        backbone=options.backbone or found.backbone,
        options=found.options,
        class_names=classes.names,
        palette=classes.palette,
        short_edge=short,
        long_edge=long,
        size_rule=size_rule(options, found.backbone),
        reduce_zero_label=classes.reduce_zero_label,
    )
    segmenter = card.build()
    card = replace(card, mean=segmenter.mean, std=segmenter.std)
    state = our_state(segmenter, file.state)
    kind = f"{card.segmenter} on {card.backbone}"
    return card, write_converted(source, target, file, segmenter, state, card, kind)


def summary(card: SegmenterCard, report: LoadReport) -> list[str]:
    """What was recognised, and what became of the entries.

    Args:
        card: The recognised segmenter.
        report: Of its entries.
    """
    classes = f"{len(card.class_names)} classes"
    if tuple(card.class_names) == ade20k.CLASS_NAMES:
        classes += ", those of ADE20K"
    return [
        f"recognised: {card.segmenter} on {card.backbone} ({classes})",
        f"images: {card.short_edge} x {card.long_edge} px, {card.size_rule}",
        *report_lines(report),
    ]


def _classes(source: Path, file: OfficialFile, num_classes: int, given: Path | None) -> _Classes:
    """Names from the user or the file, and without either those of ADE20K if they are as many."""
    if given is not None:
        names = read_class_names(given)
        check_class_count(source, num_classes, names, given)
    elif file.class_names:
        # mmsegmentation has one of ADE20K's with a blank behind it.
        names = [name.strip() for name in file.class_names]
        check_class_count(source, num_classes, names, source)
    elif num_classes == len(ade20k.CLASS_NAMES):
        names = list(ade20k.CLASS_NAMES)
    else:
        raise ValueError(
            f"{source} does not name its {num_classes} classes; pass --class-names FILE, a text "
            "file with a name per line in the order of training"
        )
    is_ade20k = tuple(names) == ade20k.CLASS_NAMES
    palette = file.palette
    if len(palette) != num_classes:
        palette = [list(colour) for colour in ade20k.PALETTE] if is_ade20k else class_palette(names)
    reduced = bool(_REDUCED.search(file.config)) if file.config else is_ade20k
    return _Classes(names, palette, reduced)

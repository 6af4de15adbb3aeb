"""``wavevit convert`` for checkpoints of mmdetection."""

from pathlib import Path

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
from wavevit.detection.card import DetectorCard
from wavevit.detection.official import our_state
from wavevit.detection.recognise import Recognised, recognise
from wavevit.models.official_files import OfficialFile
from wavevit.models.weights import LoadReport

_COCO_CLASSES = 80
# COCO's 80 classes keep the numbers that they had among 91.
_COCO_UNUSED_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
_OFFICIAL_EDGES = (800, 1333)


def convert_detector(
    source: Path, target: Path, file: OfficialFile, options: ConversionOptions
) -> tuple[DetectorCard, LoadReport]:
    """Writes a detector's weights under our names, with a card.

    Args:
        source: File that was read, for messages.
        target: File to write.
        file: Its content.
        options: What the user says of it.

    Returns:
        What was recognised, and what became of every entry.

    Raises:
        ValueError: Another detector than said, classes without names, or entries that do not fit.
    """
    found = recognise(file.state)
    check_origin(source, file, found.name, options.model)
    card = _card(source, file, found, options)
    detector = card.build()
    state = our_state(detector, file.state)
    kind = f"{card.detector} on {card.backbone}"
    return card, write_converted(source, target, file, detector, state, card, kind)


def summary(card: DetectorCard, report: LoadReport) -> list[str]:
    """What was recognised, and what became of the entries.

    Args:
        card: The recognised detector.
        report: Of its entries.
    """
    return [
        f"recognised: {card.detector} on {card.backbone} ({len(card.class_names)} classes)",
        f"images: {card.short_edge} x {card.long_edge} px, {card.size_rule}",
        *report_lines(report),
    ]


def _card(
    source: Path, file: OfficialFile, found: Recognised, options: ConversionOptions
) -> DetectorCard:
    class_names = _class_names(source, file, options.class_names)
    check_class_count(source, found.num_classes, class_names, options.class_names or source)
    short, long = edges(options, _OFFICIAL_EDGES)
    return DetectorCard(
        detector=found.name,
        backbone=options.backbone or found.backbone,
        options=found.options,
        class_names=class_names,
        category_ids=_category_ids(class_names),
        short_edge=short,
        long_edge=long,
        size_rule=size_rule(options, found.backbone),
    )


def _class_names(source: Path, file: OfficialFile, given: Path | None) -> list[str]:
    if given is not None:
        return read_class_names(given)
    if not file.class_names:
        raise ValueError(
            f"{source} does not name its classes; pass --class-names FILE, a text file with a "
            "name per line in the order of training"
        )
    return file.class_names


def _category_ids(class_names: list[str]) -> list[int]:
    """COCO's own ids of COCO's classes; else 1, 2, ..., K."""
    ends = (class_names[0], class_names[-1], len(class_names))
    if ends == ("person", "toothbrush", _COCO_CLASSES):
        return [number for number in range(1, 91) if number not in _COCO_UNUSED_IDS]
    return list(range(1, len(class_names) + 1))

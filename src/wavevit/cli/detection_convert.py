"""``wavevit convert`` for checkpoints of mmdetection."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from wavevit.detection.card import DetectorCard
from wavevit.detection.official import our_state
from wavevit.detection.official_files import OfficialFile
from wavevit.detection.recognise import Recognised, recognise
from wavevit.models.card import save_model
from wavevit.models.weights import LoadReport

_COCO_CLASSES = 80
# COCO's 80 classes keep the numbers that they had among 91.
_COCO_UNUSED_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
_OFFICIAL_EDGES = (800, 1333)
# Networks from Caffe take other strides and colours under the same names.
_CAFFE = re.compile(r"style['\"]?\s*[=:]\s*['\"]caffe")
# Not learned: computed by our networks.
_COMPUTED = re.compile(
    r"\.attn\.(?:dwt\.w_(?:ll|lh|hl|hh)|idwt\.filters)$|^bbox_head\.integral\.project$"
    r"|^data_preprocessor\."
)


@dataclass(frozen=True)
class DetectorOptions:
    """What the user says of a checkpoint; None takes what it says itself, or what is usual.

    Attributes:
        model: Detector's name.
        backbone: timm model name.
        class_names: Text file with a class per line.
        short_edge: Images are resized so that the shorter side has so many pixels,
        long_edge: unless the longer side would have more than these.
        size_rule: How edges make a size.
    """

    model: str | None = None
    backbone: str | None = None
    class_names: Path | None = None
    short_edge: int | None = None
    long_edge: int | None = None
    size_rule: Literal["multiple_of_16", "keep_ratio"] | None = None


def convert_detector(
    source: Path, target: Path, file: OfficialFile, options: DetectorOptions
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
    if options.model not in (None, found.name):
        raise ValueError(f"{source} holds a {found.name}, where --model says {options.model}")
    if _CAFFE.search(file.config):
        raise ValueError(
            f"{source} was trained with a backbone of Caffe's style, whose strides and colours are "
            "others under the same names; take one of PyTorch's style"
        )
    card = _card(source, file, found, options)
    detector = card.build()
    state = our_state(detector, file.state)
    expected = detector.state_dict()
    report = _compare(state, expected, file)
    if not report.complete:
        raise ValueError(
            f"{source} looks like {card.detector} on {card.backbone} but does not fit: "
            f"{report.summary()}"
        )
    detector.load_state_dict(state)
    save_model(target, detector.state_dict(), card)
    return card, report


def summary(card: DetectorCard, report: LoadReport) -> list[str]:
    """What was recognised, and what became of the entries.

    Args:
        card: The recognised detector.
        report: Of its entries.
    """
    lines = [
        f"recognised: {card.detector} on {card.backbone} ({len(card.class_names)} classes)",
        f"images: {card.short_edge} x {card.long_edge} px, {card.size_rule}",
        f"converted: {report.loaded} entries",
    ]
    if report.dropped:
        lines.append(f"left out, computed or a second copy: {len(report.dropped)} entries")
    for kind in ("missing", "unexpected", "mismatched"):
        lines.append(f"{kind}: {', '.join(getattr(report, kind)) or 'none'}")
    return lines


def _card(
    source: Path, file: OfficialFile, found: Recognised, options: DetectorOptions
) -> DetectorCard:
    class_names = _class_names(source, file, options.class_names)
    if len(class_names) != found.num_classes:
        place = options.class_names or source
        raise ValueError(
            f"{source} has {found.num_classes} classes, but {place} names {len(class_names)}"
        )
    backbone = options.backbone or found.backbone
    short, long = options.short_edge, options.long_edge
    is_wavevit = found.backbone.startswith("wavevit")
    card = DetectorCard(
        detector=found.name,
        backbone=backbone,
        options=found.options,
        class_names=class_names,
        category_ids=_category_ids(class_names),
        short_edge=_OFFICIAL_EDGES[0] if short is None else short,
        long_edge=_OFFICIAL_EDGES[1] if long is None else long,
        # The rounding is the Wave-ViT authors' own.
        size_rule=options.size_rule or ("multiple_of_16" if is_wavevit else "keep_ratio"),
    )
    if not 32 <= card.short_edge <= card.long_edge:
        raise ValueError(
            "--short-edge must be at least 32 and no more than --long-edge, got "
            f"{card.short_edge} and {card.long_edge}"
        )
    return card


def _class_names(source: Path, file: OfficialFile, given: Path | None) -> list[str]:
    if given is None:
        if not file.class_names:
            raise ValueError(
                f"{source} does not name its classes; pass --class-names FILE, a text file with a "
                "name per line in the order of training"
            )
        return file.class_names
    if not given.is_file():
        raise FileNotFoundError(f"--class-names names no file: {given}")
    try:
        lines = given.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--class-names: {given} is no text in UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"--class-names: {repeated[0]!r} stands more than once in {given}")
    return names


def _category_ids(class_names: list[str]) -> list[int]:
    """COCO's own ids of COCO's classes; else 1, 2, ..., K."""
    ends = (class_names[0], class_names[-1], len(class_names))
    if ends == ("person", "toothbrush", _COCO_CLASSES):
        return [number for number in range(1, 91) if number not in _COCO_UNUSED_IDS]
    return list(range(1, len(class_names) + 1))


def _compare(
    state: dict[str, Tensor], expected: dict[str, Tensor], file: OfficialFile
) -> LoadReport:
    mismatched = [
        f"{name}: {tuple(value.shape)} in the file, {tuple(expected[name].shape)} here"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    loaded = len(state) - len(unexpected) - len(mismatched)
    # Renamed entries share their memory with those of the file: what is not among them is left out.
    used = {value.untyped_storage().data_ptr() for value in state.values()}
    left_out = [n for n, v in file.state.items() if v.untyped_storage().data_ptr() not in used]
    unexpected += [name for name in left_out if not _COMPUTED.search(name)]
    return LoadReport(
        loaded=loaded,
        missing=missing,
        unexpected=unexpected,
        mismatched=mismatched,
        dropped=[*file.copies, *(name for name in left_out if _COMPUTED.search(name))],
        complete=not (missing or unexpected or mismatched),
    )

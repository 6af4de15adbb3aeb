"""What conversions of mmdetection's and mmsegmentation's checkpoints share."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from wavevit.models.card import Card, save_model
from wavevit.models.official_files import OfficialFile
from wavevit.models.weights import LoadReport

SizeRule = Literal["multiple_of_16", "keep_ratio"]

# Networks from Caffe take other strides and colours under the same names.
_CAFFE = re.compile(r"style['\"]?\s*[=:]\s*['\"]caffe")
# Not learned: computed by our networks.
_COMPUTED = re.compile(
    r"\.attn\.(?:dwt\.w_(?:ll|lh|hl|hh)|idwt\.filters)$|^bbox_head\.integral\.project$"
    r"|^data_preprocessor\."
)


@dataclass(frozen=True)
class ConversionOptions:
    """What the user says of a checkpoint; None takes what it says itself, or what is usual.

    Attributes:
        model: Name of the detector or segmenter.
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
    size_rule: SizeRule | None = None


def check_origin(source: Path, file: OfficialFile, found: str, said: str | None) -> None:
    """Refuses another network than the user says, and one whose names mislead.

    Args:
        source: File that was read, for messages.
        file: Its content.
        found: Name of the network that it holds.
        said: What the user says that it holds.

    Raises:
        ValueError: It is another one, or has a backbone of Caffe's style.
    """
    if said not in (None, found):
        raise ValueError(f"{source} holds a {found}, where --model says {said}")
    if _CAFFE.search(file.config):
        raise ValueError(
            f"{source} was trained with a backbone of Caffe's style, whose strides and colours are "
            "others under the same names; take one of PyTorch's style"
        )


def read_class_names(given: Path) -> list[str]:
    """The names of a text file with a class per line.

    Args:
        given: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text, or a name stands in it twice.
    """
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


def check_class_count(source: Path, num_classes: int, names: list[str], place: Path) -> None:
    """Refuses names that are not one for each class.

    Args:
        source: File with the weights.
        num_classes: Classes that they are for.
        names: Names of classes.
        place: File that has them.

    Raises:
        ValueError: They are more or fewer.
    """
    if len(names) != num_classes:
        raise ValueError(f"{source} has {num_classes} classes, but {place} names {len(names)}")


def edges(options: ConversionOptions, usual: tuple[int, int]) -> tuple[int, int]:
    """Short and long edge of the images.

    Args:
        options: What the user says.
        usual: Taken where the user says nothing.

    Raises:
        ValueError: They make no size.
    """
    short = usual[0] if options.short_edge is None else options.short_edge
    long = usual[1] if options.long_edge is None else options.long_edge
    if not 32 <= short <= long:
        raise ValueError(
            f"--short-edge must be at least 32 and no more than --long-edge, got {short} and {long}"
        )
    return short, long


def size_rule(options: ConversionOptions, backbone: str) -> SizeRule:
    """How edges make a size.

    Args:
        options: What the user says.
        backbone: Name of the one in the checkpoint.
    """
    # The rounding is the Wave-ViT authors' own.
    usual: SizeRule = "multiple_of_16" if backbone.startswith("wavevit") else "keep_ratio"
    return options.size_rule or usual


def write_converted(
    source: Path,
    target: Path,
    file: OfficialFile,
    network: nn.Module,
    state: dict[str, Tensor],
    card: Card,
    kind: str,
) -> LoadReport:
    """Writes weights under our names, with a card, if every entry fits.

    Args:
        source: File that was read, for messages.
        target: File to write.
        file: Content of the source.
        network: That the weights are for; they are loaded into it.
        state: Weights under our names; those that were only renamed share the file's memory.
        card: What to write with them.
        kind: What the network is, for messages.

    Returns:
        What became of every entry.

    Raises:
        ValueError: Entries do not fit.
    """
    report = _compare(state, network.state_dict(), file)
    if not report.complete:
        raise ValueError(f"{source} looks like {kind} but does not fit: {report.summary()}")
    network.load_state_dict(state)
    save_model(target, network.state_dict(), card)
    return report


def report_lines(report: LoadReport) -> list[str]:
    """What became of the entries.

    Args:
        report: Of a conversion.
    """
    lines = [f"converted: {report.loaded} entries"]
    if report.dropped:
        lines.append(f"left out, computed or a second copy: {len(report.dropped)} entries")
    for kind in ("missing", "unexpected", "mismatched"):
        lines.append(f"{kind}: {_listed(getattr(report, kind))}")
    return lines


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


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

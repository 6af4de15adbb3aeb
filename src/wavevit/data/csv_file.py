"""CSV files that list images: `path,label` and perhaps `split`."""

import csv
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# In order of preference: the first one that exists is used for validation.
VAL_NAMES = ("val", "valid", "validation", "test")
SPLIT_NAMES = ("train", *VAL_NAMES)


@dataclass(frozen=True)
class CsvRow:
    """One line of a CSV file, checked."""

    line: int
    """Line number in the file, from 1."""
    path: str
    """Path as a posix path, relative to the CSV's folder unless absolute."""
    label: str
    """Class name or number."""
    split: str | None
    """One of `SPLIT_NAMES`; None if the file has no such column."""


def read_csv(csv_path: Path) -> Iterator[CsvRow]:
    """The rows of a CSV file of images, one after the other, each checked.

    The first line names the columns: `path` and `label`, and `split` if wanted, in any order and
    case; further columns are ignored, as are blank lines. Backslashes in paths count as slashes.

    Args:
        csv_path: UTF-8 file, with or without byte order mark, any line ends.

    Yields:
        Rows in file order.

    Raises:
        ValueError: If a line is not as it should be; the message has the line number.
    """
    with open(csv_path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = _csv_header(csv_path, next(reader, []))
            for fields in reader:
                if any(field.strip() for field in fields):
                    yield _csv_row(csv_path, reader.line_num, fields, columns)
        except csv.Error as error:
            raise ValueError(f"{csv_path}, line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{csv_path}, after line {reader.line_num}: expected UTF-8 text, got byte "
                f"0x{error.object[error.start]:02x}; save the file as UTF-8"
            ) from error


def _csv_header(csv_path: Path, header: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    columns: dict[str, int] = {
        name: names.index(name) for name in ("path", "label", "split") if name in names
    }
    if "path" not in columns or "label" not in columns:
        found = ",".join(header)[:80]
        hint = "; the separator must be a comma" if ";" in found or "\t" in found else ""
        raise ValueError(
            f"{csv_path}, line 1: expected a header with the columns path,label "
            f"(and split if wanted), got {found!r}{hint}"
        )
    for name in columns:
        if names.count(name) > 1:
            raise ValueError(f"{csv_path}, line 1: the column {name!r} is there more than once")
    columns["count"] = len(header)
    return columns


def _csv_row(csv_path: Path, line: int, fields: list[str], columns: dict[str, int]) -> CsvRow:
    where = f"{csv_path}, line {line}"
    if len(fields) != columns["count"]:
        raise ValueError(
            f"{where}: expected {columns['count']} fields as in the header, got {len(fields)}; "
            "put a field that has commas in it in double quotes"
        )
    path, label = fields[columns["path"]].strip(), fields[columns["label"]].strip()
    if not path or not label:
        raise ValueError(f"{where}: the {'path' if not path else 'label'} is empty")
    split = None
    if "split" in columns:
        split = fields[columns["split"]].strip().lower()
        if split not in SPLIT_NAMES:
            raise ValueError(
                f"{where}: expected a split of {', '.join(SPLIT_NAMES)}, got {split!r}"
            )
    return CsvRow(line, posixpath.normpath(path.replace("\\", "/")), label, split)


def sort_labels(texts: Iterable[str]) -> list[str]:
    """Distinct labels in order: as numbers if all are plain whole numbers, else as strings."""
    distinct = sorted(set(texts))
    if all(text.isdecimal() and str(int(text)) == text for text in distinct):
        return sorted(distinct, key=int)
    return distinct

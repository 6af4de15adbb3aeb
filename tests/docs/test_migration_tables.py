"""The tables of names on the migration pages are those of the code that renames."""

import re

from pages import ROOT

from wavevit.detection import official as detectors
from wavevit.detection.official_two_stage import RENAMES
from wavevit.models import official
from wavevit.segmentation import official as segmenters


def name_rows(page: str, heading: str) -> list[tuple[list[str], list[str]]]:
    """Code in the first and in the second column, of the table that starts with a heading."""
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    table = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    cells = [line.split("|")[1:3] for line in table[1].splitlines()]
    return [(re.findall(r"`([^`]+)`", a), re.findall(r"`([^`]+)`", b)) for a, b in cells]


def test_official_names_of_classifiers() -> None:
    checked = 0
    for theirs, ours in name_rows("migrating-from-official", "official name"):
        if not ours:  # the same, or none
            computed = [official.our_name(name) for name in theirs]
            assert computed in ([None, None], theirs)
            continue
        for name, expected in zip(theirs, ours, strict=True):
            assert official.our_name(f"{name}.weight") == f"{expected}.weight"
            checked += 1
    assert checked >= 15


def test_names_of_mmdetection() -> None:
    """Each name is renamed so in one of the detectors."""
    common = [*detectors.NECK, *detectors.DENSE]
    tables = [common, *([*common, *renames] for renames in RENAMES.values())]
    checked = 0
    for theirs, ours in name_rows("migrating-from-mmdetection", "mmdetection's name")[1:]:
        targets = ours if len(ours) == len(theirs) else ours[:1] * len(theirs)
        for name, expected in zip(theirs, targets, strict=True):
            weight = f"{name}.weight"
            renamed = {detectors._our_name(weight, table, laterals=4) for table in tables}
            assert {expected, f"{expected}.weight"} & renamed, name
            checked += 1
    assert checked >= 19


def test_names_of_mmsegmentation() -> None:
    rows = name_rows("migrating-from-mmsegmentation", "mmsegmentation's name")
    for theirs, ours in rows[1:]:  # behind the backbone
        for name, expected in zip(theirs, ours, strict=False):
            assert segmenters._our_name(f"{name}.weight") == f"{expected}.weight"
    assert len(rows) >= 8


def test_recipes_named_beside_official_configurations_exist() -> None:
    text = (ROOT / "docs/migrating-from-official.md").read_text(encoding="utf-8")
    names = re.findall(r"`--config (\w+)`", text)
    assert len(set(names)) >= 11
    for name in names:
        assert list(ROOT.glob(f"configs/*/{name}.yaml")), name

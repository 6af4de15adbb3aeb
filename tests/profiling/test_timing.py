"""Turns, percentiles, memory, and tables that are appended to."""

import csv
from pathlib import Path

import pytest
import torch

from wavevit.profiling.timing import (
    Summary,
    append_rows,
    check_columns,
    device_name,
    environment,
    paired_ratio,
    peak_memory,
    time_in_turns,
)


def test_percentiles_are_those_of_numpy() -> None:
    assert Summary.of([4.0, 1.0, 3.0, 5.0, 2.0, 6.0]) == Summary(3.5, 2.0, 5.0)
    assert Summary.of([7.0]) == Summary(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="one measurement or more"):
        Summary.of([])


def test_slow_rounds_are_low_rates() -> None:
    assert Summary(2.0, 1.0, 4.0).rate(8) == Summary(4.0, 2.0, 8.0)


def test_the_ratio_is_of_the_times_of_one_round() -> None:
    # A neighbour doubles what is measured in two rounds: the ratio does not see it.
    assert paired_ratio([2.0, 4.0, 2.0, 4.0], [1.0, 2.0, 1.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0], [1.0, 2.0])


def test_calls_take_turns_after_their_warm_up() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = time_in_turns(calls, 2, "cpu", 1)
    assert "".join(order) == "ab" + "abab"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert all(value > 0 for values in times.values() for value in values)


def test_settling_and_repeats_come_in_a_row() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    time_in_turns(calls, 1, "cpu", 0, settle=1, repeats=2)
    assert "".join(order) == "aaabbb"
    with pytest.raises(ValueError, match="1 or more, got rounds=0"):
        time_in_turns(calls, 0, "cpu")


def test_peak_memory_is_what_is_held_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    def call() -> torch.Tensor:
        first = torch.ones(1000)
        second = first + 1
        del first
        return second + 1  # two at a time, though three in all

    before = torch.ones(5000)
    assert peak_memory(call, "cpu") == pytest.approx(2 * 4000, abs=32)  # and a few scalars
    assert peak_memory(lambda: before.relu_(), "cpu") == 0
    assert capfd.readouterr().err == ""


def test_the_device_has_a_name() -> None:
    assert device_name("cpu").endswith("1 thread")
    assert list(environment("cpu")) == ["date", "device", "torch", "timm", "triton", "wavevit"]


def test_rows_are_appended_to_a_file_with_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append_rows(path, [{"a": 1, "b": "x, y"}])
    append_rows(path, [{"a": 2, "b": ""}, {"a": 3, "b": "z"}])
    assert path.read_text() == 'a,b\n1,"x, y"\n2,\n3,z\n'
    with path.open(newline="") as file:
        assert [row["a"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_a_file_keeps_its_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\r\n1,2\r\n")
    append_rows(path, [{"a": 3, "b": 4}])
    assert path.read_bytes() == b"a,b\r\n1,2\r\n3,4\r\n"
    path.write_bytes(b"a,b\n1,2")
    append_rows(path, [{"a": 3, "b": 4}])
    assert path.read_bytes() == b"a,b\n1,2\n3,4\n"


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,c\n1,2\n")
    with pytest.raises(ValueError, match=r"lacks b; has c\): name a new file"):
        append_rows(path, [{"a": 1, "b": 2}])
    with pytest.raises(ValueError, match="in another order"):
        append_rows(path, [{"c": 1, "a": 2}])
    with pytest.raises(ValueError, match="expected rows with the columns a, c, got one with a"):
        append_rows(path, [{"a": 1, "c": 2}, {"a": 1}])
    assert path.read_text() == "a,c\n1,2\n"


def test_places_that_cannot_hold_rows_are_found_out_before(tmp_path: Path) -> None:
    check_columns(tmp_path / "new.csv", ["a"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        check_columns(tmp_path / "missing" / "new.csv", ["a"])
    with pytest.raises(IsADirectoryError, match="got the folder"):
        check_columns(tmp_path, ["a"])
    with pytest.raises(PermissionError, match=r"cannot write new\.csv into /proc"):
        check_columns(Path("/proc/new.csv"), ["a"])
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ValueError, match="other columns"):
        check_columns(tmp_path / "picture.csv", ["a"])

"""`wavevit benchmark`: what it prints, writes and refuses."""

import csv
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch

from wavevit.cli import benchmark, benchmark_run
from wavevit.cli.main import main
from wavevit.models.runtimes import RUNTIMES
from wavevit.profiling import roofline
from wavevit.profiling.benchmark_rows import Row
from wavevit.profiling.machine import Machine
from wavevit.profiling.precision import PRECISIONS

QUICK = ("--models", "wavevit_test", "--image-size", "32", "--batch-size", "2", "--rounds", "2")

REGISTERING = """
import timm
from timm.models import register_model

@register_model
def {name}(pretrained=False, **kwargs):
    return timm.create_model("wavevit_test", **kwargs)
"""


def run(*words: object) -> int:
    return main(["benchmark", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line about what is refused before anything is measured."""
    assert run(*QUICK, *words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("wavevit: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def test_every_case_has_a_line_a_row_and_a_place_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    words = ("--models", "wavevit_test", "test_resnet")
    for _ in range(2):  # the second run appends
        assert run(*QUICK, *words, "--latency", "--csv", path) == 0
    text = capsys.readouterr().out
    for model in ("wavevit_test", "test_resnet"):
        for case in ("batch 2 32 px", "batch 1 32 px"):
            assert len(re.findall(f"^{model} eager fp32 {case}: .* images/s", text, re.M)) == 2
        assert len(re.findall(rf"^{model} +[12] +\d", text, re.M)) == 2 * 2
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4
    for row in rows:
        assert row["status"] == "ok"
        assert row["wavevit"]
        assert row["device"].endswith("1 thread")
        speeds = [float(row[f"images_per_s{tail}"]) for tail in ("_p20", "", "_p80")]
        assert speeds == sorted(speeds)
        assert (row["ratio"] == "1.0") or row["model"] == "test_resnet"


def test_the_roofline_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "measure_machine", lambda *_: Machine(2e10, 1e11))
    assert run(*QUICK, "--roofline") == 0
    text = capsys.readouterr().out
    assert re.search(r"this machine in fp32: copies of 20 GB/s .* 0.1 TFLOP/s", text)
    assert re.search(r"^model +GFLOP +MB +floor images/s +reached", text, re.M)


def test_training_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*QUICK, "--mode", "training", "--grad-checkpointing") == 0
    assert capsys.readouterr().out.count("training on ") == 1


def test_a_size_that_a_network_refuses_is_said_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--models", "wavevit_test", "test_vit", "--image-size", 33)
    assert run(*QUICK, *words) == 1
    text = capsys.readouterr().out
    assert re.search(r"^test_vit eager fp32 batch 2 33 px: failed: ", text, re.M)
    assert re.search(r"^test_vit +- +failed", text, re.M)
    assert re.search(r"^wavevit_test +\d", text, re.M)


def test_a_file_registers_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "more.py"
    path.write_text(REGISTERING.format(name="registered_for_a_test"))
    words = ("--models", "registered_for_a_test", "--register", path)
    assert run(*QUICK, *words) == 0
    assert run(*QUICK, *words) == 0  # a second time in one process
    assert "registered_for_a_test" in capsys.readouterr().out


def test_a_file_that_registers_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file" in refused(capsys, "--register", tmp_path / "missing.py")
    (tmp_path / "models.txt").write_text("")
    assert "expects a Python file" in refused(capsys, "--register", tmp_path / "models.txt")
    (tmp_path / "nothing.py").write_text("")
    for _ in range(2):
        assert "registers no model" in refused(capsys, "--register", tmp_path / "nothing.py")


def test_the_picture_is_drawn_from_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[tuple[Sequence[Row], Path]] = []
    module = ModuleType("wavevit.pictures.speed")
    module.draw_speed = lambda rows, path: drawn.append((rows, path))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wavevit.pictures.speed", module)
    path = tmp_path / "speed.png"
    path.write_bytes(b"mine")
    assert "exists; choose another name or pass --overwrite" in refused(capsys, "--picture", path)
    assert path.read_bytes() == b"mine"
    words = ("--models", "wavevit_test", "test_vit", "--image-size", 33)
    assert run(*QUICK, *words, "--picture", path, "--overwrite") == 1
    ((rows, target),) = drawn
    assert target == path
    assert [row["model"] for row in rows] == ["wavevit_test"]


def test_slow_precisions_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(benchmark_run, "is_slow_on_cpu", lambda precision: precision != "fp32")
    with caplog.at_level(logging.WARNING):
        assert run(*QUICK, "--precision", "fp32", "bf16", "bf16") == 0
    (record,) = caplog.records
    assert "no instructions for bf16: " in record.getMessage()


def test_threads_are_set_for_the_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    original = benchmark_run.measure

    def measure(*arguments: object) -> "list[Row]":
        seen.append(torch.get_num_threads())
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(benchmark_run, "measure", measure)
    assert run(*QUICK, "--threads", 2) == 0
    assert seen == [2]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--models", "wavevit_tst"), "did you mean wavevit_test?"),
        (("--image-size", "224", "16"), "32 pixels or more, got 16"),
        (("--batch-size", "0"), "batch size of 1 or more, got 0"),
        (("--rounds", "0"), "must be 1 or more, got 0"),
        (("--runtime", "cuda-graphs", "--device", "cpu"), "cuda-graphs needs a CUDA device"),
        (("--runtime", "openvino", "--mode", "training"), "openvino cannot train"),
        (("--precision", "int3"), "--precision"),
        (("--compare-with", "resnet50"), "can compare only with what is measured, wavevit_test"),
        (("--picture", "speed.jpg"), "--picture must end in .png"),
        (("--picture", "missing/speed.png"), "no such folder for speed.png: missing"),
        (("--mode", "training", "--no-fuse"), "--autocast and --no-fuse are for inference"),
        (("--csv", "missing/rows.csv"), "no such folder for rows.csv"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *words)


def test_a_file_with_other_columns_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("date,device,seconds\n")
    assert "other columns" in refused(capsys, "--csv", path)
    assert path.read_text() == "date,device,seconds\n"


def test_the_options_take_every_precision_and_runtime() -> None:
    assert get_args(benchmark.Precision) == PRECISIONS
    assert get_args(benchmark.Runtime) == RUNTIMES


def test_it_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # as lines break
    for words in ("--no-fuse", "--no-kernels", "timm model names", "Rows and columns, pixels"):
        assert words in text
    assert run(*QUICK, "--no-fuse", "--no-kernels", "--channels-last") == 0

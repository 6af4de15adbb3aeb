"""The command line's manners."""

import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import wavevit
from wavevit.cli.main import COMMANDS, main


def error_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a usage error prints."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("wavevit: error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_defaults(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"wavevit {command}" in text
    assert "--" in text


def test_help_spells_options_as_users_type_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "classification", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--data.image-size" in text
    assert "Short for --data.path." in text
    for leftover in ("--data.image_size", "<class", "{true,false}", "--optim CONFIG"):
        assert leftover not in text


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"wavevit {wavevit.__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evalute"], "unknown command 'evalute'; did you mean evaluate?"),
        (
            ["train"],
            "expected `wavevit train TASK` with TASK one of classification, detection, "
            "segmentation, got nothing",
        ),
        (["train", "clasification"], "got clasification"),
        (["train", "classification", "--optim.lrr", "1"], "did you mean --optim.lr?"),
        (["train", "classification", "--batch-size", "8"], "did you mean --data.batch-size?"),
        (["train", "classification", "--optim.lr", "fast"], "--optim.lr: Expected a float"),
        (["train", "classification", "--trainer.precision", "fp8"], "--trainer.precision"),
        (["train", "classification", "stray"], "did not expect 'stray' here"),
        (["train", "classification", "--config", "nowhere.yaml"], "no file nowhere.yaml"),
        (["train", "classification", "--data", "/no/where"], "/no/where"),
        (["train", "classification", "--model", "wavevit_m"], "no model named 'wavevit_m'"),
        (["train", "classification", "--model.weights", "/no.pth"], "names no file: /no.pth"),
        (["train", "classification", "--optim.lr", "-1"], "optim.lr must be above 0, got -1"),
        (["train", "classification", "--optim.opt", "adamm"], "no optimizer named 'adamm'"),
        (["train", "classification", "--augment.hflip", "2"], "augment.hflip must be in [0, 1]"),
        (["train", "classification", "--augment.rand-augment", "x"], "must be a policy of timm"),
        (["train", "classification", "--data.image-size", "16"], "at most 4096, got 16"),
        (
            ["train", "classification", "--model", "test_resnet", "--model.args.colour", "1"],
            "does not take these arguments",
        ),
        (["convert", "/no.pth", "out.safetensors"], "/no.pth is missing"),
        (["check-data", "--data", "/no/where"], "/no/where"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if arguments[:2] == ["train", "classification"]:
        arguments = [*arguments, "--output", str(tmp_path / "run")]
    assert words in error_line(arguments, capsys)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_unknown_key_in_a_recipe_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optim: {learning_rate: 1}\n")
    line = error_line(["train", "classification", "--config", str(recipe)], capsys)
    assert "unknown option or key 'optim.learning_rate'" in line
    recipe.write_text("optim: [1, 2\n")
    error_line(["train", "classification", "--config", str(recipe)], capsys)


def test_print_config_shows_the_recipe_with_what_overrides_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "classification", "--optim.lr", "0.25", "--print-config"]) == 0
    text = capsys.readouterr().out
    assert "lr: 0.25" in text
    assert "path: shapes" in text


def test_an_output_that_cannot_be_written_or_holds_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for output in ("file", "file/below"):
        error_line(["train", "classification", "--output", str(tmp_path / output)], capsys)
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    line = error_line(["train", "classification", "--output", str(tmp_path / "old")], capsys)
    assert "already holds a run; pass --resume to go on with it" in line


def test_traceback_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "/no.pth", "x.safetensors", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_module_runs_as_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["wavevit", "nonsense"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("wavevit", run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("wavevit: error: unknown command 'nonsense'")


def test_importing_a_command_loads_no_library() -> None:
    """What it works with is loaded when it runs; only training's settings need the parser's types.

    An empty package stands in for wavevit itself, whose own import loads torch and timm.
    """
    code = (
        "import importlib, sys, types; package = types.ModuleType('wavevit');"
        "package.__path__ = [sys.argv[1]]; sys.modules['wavevit'] = package;"
        "before = set(sys.modules);"
        "[importlib.import_module(f'wavevit.cli.{name}') for name in sys.argv[2:]];"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(loaded - set(sys.stdlib_module_names))"
    )
    modules = [module for module, _ in COMMANDS.values() if not module.startswith("train_")]
    done = subprocess.run(
        [sys.executable, "-c", code, *wavevit.__path__, *modules],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "{'wavevit'}\n"


def test_warnings_of_the_parser_stay_away() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["train", "classification", "--print-config"]) == 0

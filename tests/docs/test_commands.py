"""Every command in the README and the docs is run, or says in the source why it is not.

A command runs as it is written, in a folder where what it names is really there (`sandbox`). What
is added to it, and all that is added, stands in `ADDED`: toy networks and small images, a fraction
of an epoch, no downloads. Two replacements are in `REPLACED`. Each must end with exit code 0.
"""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from pages import COMMAND_LANGUAGES, OTHER_LANGUAGES, PAGES, ROOT, Block, blocks, command_blocks
from sandbox import Sandbox

from wavevit.cli.main import COMMANDS, main
from wavevit.detection.factory import DETECTORS, detector_class
from wavevit.segmentation.factory import SEGMENTERS, segmenter_class

REPLACED = {"/data/imagenet": "IMAGENET", "8": "2", "4": "2"}  # numbers: of torchrun's processes
_SHORT = [
    *("--optim.epochs", "0.004", "--optim.warmup-epochs", "0", "--optim.cooldown-epochs", "0"),
    *("--optim.step-epochs", "[0.001, 0.002]", "--data.num-workers", "0"),
    *("--data.batch-size", "2", "--trainer.images-per-step", "2"),
    *("--trainer.precision", "fp32"),  # CPUs have no fp16
]
_SMALL_PYRAMID = [
    *("--model.backbone", "wavevit_test", "--model.heads", "narrow", "--model.pretrained", "false"),
    *("--data.short-edge", "64", "--data.long-edge", "96"),
]
ADDED = {
    "train classification": [
        *_SHORT,
        *("--model", "wavevit_test", "--data.image-size", "32"),
    ],
    "train detection": [
        *(*_SHORT, *_SMALL_PYRAMID, "--augment.short-edges", "[64]"),
        *("--augment.short-edges-before-crop", "[64]", "--augment.crop-sizes", "[32, 64]"),
    ],
    "train segmentation": [*_SHORT, *_SMALL_PYRAMID, "--augment.crop-size", "[64, 64]"],
    "evaluate": ["--num-workers", "0"],
    "predict": [],
    "benchmark": [
        *("--models", "wavevit_test", "--batch-size", "1", "--image-size", "32"),
        *("--rounds", "1", "--threads", "1"),
    ],
    "label-maps create": ["--num-workers", "0"],
}
TWO_PROCESSES = ["--trainer.images-per-step", "4"]
SMALL_IMAGES = ["--short-edge", "64", "--long-edge", "96"]
_OUTPUTS = ("--output", "--draw", "--save-masks")

RUN = [block for block in command_blocks() if block.reason is None]
NOT_RUN = [block for block in command_blocks() if block.reason is not None]


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The name of a command of wavevit, and the words behind it."""
    for name in COMMANDS:
        count = len(name.split())
        if " ".join(words[:count]) == name:
            return name, words[count:]
    return "", words  # --version


@pytest.fixture
def sandbox(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    shapes_folder: Path,
    masks_folder: Path,
) -> Sandbox:
    monkeypatch.chdir(tmp_path)
    shared = tmp_path_factory.getbasetemp() / "docs-shared"
    torch.manual_seed(0)
    return Sandbox(tmp_path, request.param, shapes_folder, masks_folder, shared)


def run_wavevit(
    words: list[str],
    sandbox: Sandbox,
    call: Callable[[list[str]], int],
    more: Sequence[str] = (),
) -> None:
    name, options = split_command(words)
    if "--index-only" in options:
        sandbox.provide_tars()
    for position, word in enumerate(options):
        if position == 0 or options[position - 1] not in _OUTPUTS:
            sandbox.provide(word)
    added = ADDED.get(name, [])
    if name == "convert" and "official" not in options[0]:
        added = SMALL_IMAGES  # for the commands that use what is converted
    assert call([*words, *added, *more]) == 0, " ".join(words)


def in_a_process(*command: str) -> Callable[[list[str]], int]:
    """Runs wavevit as a program: compilers and OpenVINO keep threads, which later tests dislike."""

    def call(words: list[str]) -> int:
        paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *command, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.returncode

    return call


def run_line(words: list[str], sandbox: Sandbox, apart: bool) -> None:
    words = [REPLACED.get(word, word) if word.startswith("/") else word for word in words]
    if words[0] == "wavevit":
        run_wavevit(words[1:], sandbox, in_a_process("wavevit") if apart else main)
    elif words[0] == "torchrun":
        end = words.index("wavevit")
        launcher = [REPLACED.get(word, word) for word in words[1:end]]
        call = in_a_process("torch.distributed.run", *launcher, "wavevit")
        run_wavevit(words[end + 1 :], sandbox, call, TWO_PROCESSES)
    elif words[0] == "export":
        subprocess.run(["bash", "-euc", " ".join(words)], check=True)
    else:
        pytest.fail(f"cannot run {words[0]!r} here: mark the block, or teach this test")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "sandbox"),
    [pytest.param(block, block.task, id=block.name) for block in RUN],
    indirect=["sandbox"],
)
def test_every_command_of_a_block_runs(block: Block, sandbox: Sandbox) -> None:
    commands = block.commands()
    assert commands, "an empty block"
    if "clip.mp4" in block.text:
        pytest.importorskip("cv2", reason="needs OpenCV, from the extra 'video'")
    for words in commands:
        run_line(words, sandbox, block.needs_processes)


def test_blocks_that_are_not_run_are_few_and_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    for block in NOT_RUN:
        assert block.reason
        assert len(block.reason) > 8
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(RUN)} blocks of commands in the docs are run, {len(NOT_RUN)} not:"
        )
        sys.stdout.write("".join(f"\n  {block.name}: {block.reason}" for block in NOT_RUN) + "\n")
    assert len(NOT_RUN) < len(RUN) / 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_has_a_language_that_is_tested(page: Path) -> None:
    for block in blocks(page):
        assert block.language in (*COMMAND_LANGUAGES, *OTHER_LANGUAGES), block.name
    # A marker that is not directly before a block would say something of nothing.
    marked = sum(block.reason is not None for block in blocks(page))
    assert page.read_text(encoding="utf-8").count("<!-- not run here") == marked


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    from contextlib import redirect_stdout
    from io import StringIO

    known: set[str] = {"--help", "--version", "--traceback", "--key"}
    for name in COMMANDS:
        with redirect_stdout(StringIO()) as text:
            assert main([*name.split(), "--help"]) == 0
        known |= set(re.findall(r"--[a-zA-Z][\w.-]*", text.getvalue()))
    classes = [*map(detector_class, DETECTORS), *map(segmenter_class, SEGMENTERS)]
    options = {name for cls in classes for name in inspect.signature(cls).parameters}
    return known | {f"--model.options.{name}" for name in options}


FOREIGN = {
    *("--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port"),  # torchrun
    *(
        "--max-restarts",
        "--shutdown-timeout",
        "--standalone",
        "--rdzv-",
        "--rdzv-backend",
        "--shm-size",
    ),
    *("--signal", "--kill-on-bad-exit", "--gpus-per-node", "--gpus-per-task"),  # SLURM
    *("--ntasks-per-node", "--shm-size"),
}
THEIRS = ("theirs", "mmdetection", "mmsegmentation")  # columns of tables about other programs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_the_text_exist(page: Path, known_options: set[str]) -> None:
    """Also those in tables and sentences, without a whole command around them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    skip_first = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if not line.startswith("|"):
            skip_first = False
        elif cells[1] in THEIRS:
            skip_first = True
        checked = "|".join(cells[2:]) if skip_first else line
        for code in re.findall(r"`([^`]+)`", checked):
            if re.match(r"(?:python|tools/|\S*dist_|pip |docker|sphinx)", code):
                continue
            for option in re.findall(r"(?<!\S)--[a-zA-Z][\w.-]*", code):
                bare = option.replace("--no-", "--", 1) if option not in known_options else option
                fine = bare in known_options or bare in FOREIGN
                assert fine, f"{page.name}: no command has {option} (in `{code}`)"

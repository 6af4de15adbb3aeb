"""``wavevit train classification``."""

import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

SHORT_NAMES = {"data": "data.path", "model": "model.name"}
QUICK_START = "classification/shapes_wavevit_nano_quick.yaml"

EXIT_STOPPED = 75
"""A signal stopped the run after it saved: the same command with --resume goes on (EX_TEMPFAIL)."""
EXIT_DIVERGED = 3
"""The loss became NaN or infinite."""

_LESS_MEMORY = (
    "lower data.batch_size and raise trainer.accumulate by the same factor, or set "
    "model.grad_checkpointing, or train at a lower data.image_size"
)
_GROUPS = ("data", "model", "augment", "token_label", "distill", "optim", "trainer")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's options: the typed signatures of what they configure.

    Args:
        parser: The command's parser.
    """
    from wavevit.training.classification_settings import (
        Augmentation,
        ClassificationData,
        Classifier,
    )
    from wavevit.training.loop import Trainer
    from wavevit.training.optimization import Optimization
    from wavevit.training.teaching_settings import Distillation, TokenLabels

    parser.usage = "%(prog)s [--data DIR] [--config RECIPE] [--output DIR] [options]"
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="A recipe: a YAML file, or the name of one that comes with wavevit.",
    )
    parser.add_argument(
        "--output",
        type=Path | None,
        default=None,
        help="Run directory; by default runs/classification/<date-time>.",
    )
    parser.add_argument(
        "--resume",
        type=bool,
        default=False,
        help="Goes on with the run in --output; starts it if there is none.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights, order, augmentation.")
    parser.add_class_arguments(ClassificationData, "data")
    parser.add_class_arguments(Classifier, "model")
    parser.add_class_arguments(Augmentation, "augment")
    parser.add_class_arguments(TokenLabels, "token_label")
    parser.add_class_arguments(Distillation, "distill")
    parser.add_class_arguments(Optimization, "optim")
    parser.add_class_arguments(Trainer, "trainer")


def prepare(words: list[str]) -> list[str]:
    """Fills in the recipe: the quick start without data, packaged recipes by name.

    Args:
        words: Words after the command, normalised.
    """
    words = list(words)
    for position, word in enumerate(words):
        if word == "--config" and position + 1 < len(words):
            words[position + 1] = str(find_recipe(words[position + 1]))
        elif word.startswith("--config="):
            words[position] = f"--config={find_recipe(word.partition('=')[2])}"
    options = {word.partition("=")[0] for word in words}
    if options.isdisjoint({"--config", "--data.path"}):
        words = ["--config", str(find_recipe(QUICK_START)), *words]
    return words


def find_recipe(name: str) -> Path:
    """The path of a recipe.

    Args:
        name: A file, or a name below the recipes that come with wavevit.

    Raises:
        FileNotFoundError: Neither.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = Path(str(resources.files("wavevit"))) / "configs"
    if not packaged.is_dir():  # an editable installation: the repository's own folder
        packaged = Path(__file__).parents[3] / "configs"
    relative = name.removeprefix("configs/")
    for candidate in (packaged / relative, packaged / "classification" / f"{relative}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(p.stem for p in (packaged / "classification").glob("*.yaml")))
    raise FileNotFoundError(f"--config: no file {name}; recipes that come with wavevit: {known}")


def run(options: Namespace) -> int:
    """Trains, and returns the exit code; called on every process that torchrun or SLURM starts.

    Args:
        options: Parsed options.

    Raises:
        FileNotFoundError: No such data or weights.
        ValueError: Settings that cannot be used.
        OSError: The run directory cannot be written.
    """
    import sys

    from wavevit.cli.memory import out_of_memory_explained
    from wavevit.cli.progress import Silence, TrainingProgress
    from wavevit.data.worker_failures import LoaderError
    from wavevit.training.loop import NonFiniteLossError, Trainer, stop_signals
    from wavevit.training.processes import (
        EarlyStop,
        LostProcessError,
        leave,
        lost_processes_explained,
    )

    if options.resume and options.output is None:
        raise ValueError("--resume goes on with the run in --output; name that directory")
    if options.output is not None and not str(options.output).strip("."):
        raise ValueError("--output is empty or the current folder; name a directory for the run")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed must be in [0, 2**32), got {options.seed}")
    trainer = Trainer(**options.trainer.as_dict())
    output, speaks = options.output, True
    try:
        with stop_signals() as signals, lost_processes_explained():
            fabric = trainer.launch()
            stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
            output = output or Path("runs/classification") / fabric.broadcast(stamp)
            speaks = fabric.is_global_zero
            shown = TrainingProgress() if speaks else Silence()
            with shown as progress, out_of_memory_explained(_LESS_MEMORY):
                code = _train(options, trainer, fabric, progress, output, signals)
    except EarlyStop as reason:
        leave()
        if speaks:
            sys.stderr.write(f"wavevit: stopped: {reason}; {_what_next(output)}\n")
        return EXIT_STOPPED
    except NonFiniteLossError as error:  # which every process knows of
        if speaks:
            sys.stderr.write(f"wavevit: error: {error}\n")
        code = EXIT_DIVERGED
    except (ValueError, OSError):
        leave()
        raise
    except (LostProcessError, LoaderError) as error:
        raise type(error)(f"{error}; {_what_next(output)}") from error
    leave()
    return code


def _train(
    options: Namespace, trainer: Any, fabric: Any, progress: Any, output: Path, signals: Any
) -> int:
    from wavevit.training.optimization import Optimization
    from wavevit.training.processes import failures_shared, together
    from wavevit.training.run_directory import CONTENT, RunDirectory

    optim = Optimization(**options.optim.as_dict())
    task = together(fabric, lambda: _make_task(options))
    content = together(fabric, task.fingerprints)
    together(fabric, _same_data(fabric, content, options.data.path))
    config = {
        "seed": options.seed,
        **{f"{CONTENT}{name}": value for name, value in content.items()},
        **_flat({name: options[name].as_dict() for name in _GROUPS}),
    }
    run = together(
        fabric,
        lambda: RunDirectory(output, config, resume=options.resume, writes=fabric.is_global_zero),
    )
    with failures_shared(fabric, output):
        return _run(task, optim, trainer, fabric, run, options, progress, signals)


def _run(
    task: Any,
    optim: Any,
    trainer: Any,
    fabric: Any,
    run: Any,
    options: Namespace,
    progress: Any,
    signals: Any,
) -> int:
    from wavevit.training.processes import emulates, on_first
    from wavevit.training.report import write_pictures, write_report, write_samples

    output = run.path
    resolved = options.clone()
    resolved.pop("config", None)
    resolved.output, resolved.resume = str(output), False
    progress.note(f"{task.splits.description}; {len(task.card.class_names)} classes")
    progress.note(f"{task.card.model} at {task.data.image_size[0]} px; run in {output}")
    if fabric.world_size > 1:
        progress.note(f"{fabric.world_size} processes, {trainer.strategy}")
    if emulates(trainer.precision, fabric.device):
        progress.note(
            f"this CPU has no instructions for {trainer.precision}: --trainer.precision fp32 would "
            "be many times faster here"
        )
    if not run.has_checkpoints():  # else settings are compared before anything changes
        on_first(fabric, lambda: run.write_config(resolved.as_dict()))
    progress.note(f"reading the {len(task.val_set):,} validation images once")
    task.check_validation_set(fabric, trainer.timeout_s)
    if not run.log_bytes():
        on_first(fabric, lambda: write_samples(run, task))
    outcome = trainer.fit(
        fabric,
        task,
        optim,
        run,
        seed=options.seed,
        resume=options.resume,
        progress=progress,
        signals=signals,
    )
    if not outcome.finished:
        progress.note(
            f"stopped and saved at step {outcome.position.step} of {outcome.total_steps}; the "
            f"same command with --output {output} --resume goes on"
        )
        return EXIT_STOPPED

    def write_results() -> None:
        write_pictures(run, task)
        write_report(run, task, outcome)

    on_first(fabric, write_results)
    progress.note(
        f"best top-1 {outcome.position.best_score:.4f} at step {outcome.position.best_step}; "
        f"report, pictures and best.safetensors in {output}"
    )
    return 0


def _same_data(fabric: Any, content: dict[str, str], path: str) -> Callable[[], None]:
    """Raises on a process that reads other images, labels or maps than process 0 does."""
    first = fabric.broadcast(content)

    def check() -> None:
        differs = [name for name in content if content[name] != first.get(name)]
        if differs:
            raise ValueError(
                f"{path}: this machine has other {' and '.join(differs)} than that of process 0; "
                "give every machine the same data"
            )

    return check


def _make_task(options: Namespace) -> Any:
    from wavevit.training.classification import ClassificationTask
    from wavevit.training.classification_settings import (
        Augmentation,
        ClassificationData,
        Classifier,
    )
    from wavevit.training.teaching_settings import Distillation, TokenLabels

    return ClassificationTask(
        ClassificationData(**options.data.as_dict()),
        Augmentation(**options.augment.as_dict()),
        Classifier(**options.model.as_dict()),
        options.seed,
        TokenLabels(**options.token_label.as_dict()),
        Distillation(**options.distill.as_dict()),
    )


def _what_next(output: Path | None) -> str:
    """What a user does after a run broke, with the step it will go on from."""
    from wavevit.training.checkpoint import checkpoint_step, list_checkpoints, verifies

    if output is None:  # it broke before the processes had found each other
        return "the same command starts again"
    again = f"the same command with --output {output} --resume goes on from"
    if not output.is_dir():  # on another machine than process 0's
        return f"{again} the newest checkpoint"
    for path in list_checkpoints(output / "checkpoints"):
        if verifies(path):
            return f"{again} step {checkpoint_step(path)}, the newest checkpoint"
    return f"{again} the start: no checkpoint yet"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    from wavevit.training.run_directory import plain

    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key != "args":
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = plain(value)
    return flat

"""What the training commands share: their options, recipes, and a run from start to report."""

import inspect
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

if TYPE_CHECKING:
    from wavevit.training.loop import Outcome
    from wavevit.training.run_directory import RunDirectory

EXIT_STOPPED = 75
"""A signal stopped the run after it saved: the same command with --resume goes on (EX_TEMPFAIL)."""
EXIT_DIVERGED = 3
"""The loss became NaN or infinite."""

_LESS_MEMORY = (
    "lower data.batch_size and raise trainer.accumulate by the same factor, or set "
    "model.grad_checkpointing, or train at a lower {size}"
)


class Results(Protocol):
    """A module of `training` that shows and tells what a run has done; all but process 0 wait."""

    def write_samples(self, run: "RunDirectory", task: Any) -> None:
        """Draws training samples."""

    def write_pictures(self, run: "RunDirectory", task: Any) -> None:
        """Draws what came out."""

    def write_report(self, run: "RunDirectory", task: Any, outcome: "Outcome") -> None:
        """Writes ``report.md``."""


@dataclass(frozen=True)
class TrainingCommand:
    """What tells one training command from another, and the command made of it.

    Its module binds the methods to the names that `main` looks for.

    Attributes:
        task: Its word, and the name of the folders of its recipes and of its runs.
        quick_start: Name of the recipe that needs no data.
        settings: Gives the classes of its groups of options by name, in the order of the help;
            those of the optimizer and the loop come after them.
        make_task: From the settings by name, and the seed.
        results: Gives the module that shows what a run has done.
        headline: One line about what is trained.
        score: What the best network is the best in.
        size_option: The option that says how large images are.
        usage: The short options of its own, for the first line of the help.
        instead_of_model: What to do instead of naming a ``--model``; None where that is right.
    """

    task: str
    quick_start: str
    settings: Callable[[], dict[str, Any]]
    make_task: Callable[[dict[str, Any], int], Any]
    results: Callable[[], Results]
    headline: Callable[[Any], str]
    score: str
    size_option: str
    usage: str
    instead_of_model: str | None = None

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds the command's options: the typed signatures of what they configure.

        Args:
            parser: The command's parser.
        """
        from wavevit.training.loop import Trainer
        from wavevit.training.optimization import Optimization

        parser.usage = f"%(prog)s {self.usage} [--config RECIPE] [--output DIR] [options]"
        parser.add_argument(
            "--config",
            action=ActionConfigFile,
            help="A recipe: a YAML file, or the name of one that comes with wavevit.",
        )
        parser.add_argument(
            "--output",
            type=Path | None,
            default=None,
            help=f"Run directory; by default runs/{self.task}/<date-time>.",
        )
        parser.add_argument(
            "--resume",
            type=bool,
            default=False,
            help="Goes on with the run in --output; starts it if there is none.",
        )
        parser.add_argument(
            "--seed", type=int, default=0, help="Seed of weights, order, augmentation."
        )
        for name, settings in self.settings().items():
            parser.add_class_arguments(settings, name)
        parser.add_class_arguments(Optimization, "optim")
        parser.add_class_arguments(Trainer, "trainer")

    def prepare(self, words: list[str]) -> list[str]:
        """Fills in the recipe: the quick start without data, packaged recipes by name.

        Args:
            words: Words after the command, normalised.

        Raises:
            FileNotFoundError: No such recipe.
            ValueError: ``--model``, as it is for other tasks, where two things have names.
        """
        options = {word.partition("=")[0] for word in words}
        if self.instead_of_model is not None and "--model" in options:
            raise ValueError(f"--model: {self.instead_of_model}")
        words = list(words)
        for position, word in enumerate(words):
            if word == "--config" and position + 1 < len(words):
                words[position + 1] = str(self.find_recipe(words[position + 1]))
            elif word.startswith("--config="):
                words[position] = f"--config={self.find_recipe(word.partition('=')[2])}"
        if options.isdisjoint({"--config", "--data.path"}):
            words = ["--config", str(self.find_recipe(self.quick_start)), *words]
        return words

    def find_recipe(self, name: str) -> Path:
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
        for candidate in (packaged / relative, packaged / self.task / f"{relative}.yaml"):
            if candidate.is_file():
                return candidate
        known = ", ".join(sorted(p.stem for p in (packaged / self.task).glob("*.yaml")))
        raise FileNotFoundError(
            f"--config: no file {name}; recipes that come with wavevit: {known}"
        )

    def run(self, options: Namespace) -> int:
        """Trains, and returns the exit code; called on every process that torchrun or SLURM starts.

        Args:
            options: Parsed options.

        Raises:
            FileNotFoundError: No such data or weights.
            ValueError: Settings that cannot be used.
            OSError: The run directory cannot be written.
        """
        return _launch(options, self)


def _launch(options: Namespace, command: TrainingCommand) -> int:
    from wavevit.cli.progress import Silence, TrainingProgress
    from wavevit.data.worker_failures import LoaderError
    from wavevit.training.loop import NonFiniteLossError, Trainer, stop_signals
    from wavevit.training.processes import (
        EarlyStop,
        LostProcessError,
        leave,
        lost_processes_explained,
        said_once,
    )

    if options.resume and options.output is None:
        raise ValueError("--resume goes on with the run in --output; name that directory")
    if options.output is not None and not str(options.output).strip("."):
        raise ValueError("--output is empty or the current folder; name a directory for the run")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed must be in [0, 2**32), got {options.seed}")
    with said_once():
        trainer = Trainer(**options.trainer.as_dict())
    output, speaks = options.output, True
    try:
        fabric = trainer.launch()  # where a signal simply ends the process
        with stop_signals() as signals, lost_processes_explained():
            stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
            output = output or Path("runs") / command.task / fabric.broadcast(stamp)
            speaks = fabric.is_global_zero
            shown = TrainingProgress() if speaks else Silence()
            with shown as progress:
                code = _train(options, command, trainer, fabric, progress, output, signals)
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
    options: Namespace,
    command: TrainingCommand,
    trainer: Any,
    fabric: Any,
    progress: Any,
    output: Path,
    signals: Any,
) -> int:
    from wavevit.cli.memory import out_of_memory_explained
    from wavevit.training.optimization import Optimization
    from wavevit.training.processes import failures_shared, together
    from wavevit.training.run_directory import CONTENT, RunDirectory

    optim = together(fabric, lambda: Optimization(**options.optim.as_dict()))
    settings = command.settings()
    memory_explained = out_of_memory_explained(_LESS_MEMORY.format(size=command.size_option))

    @memory_explained
    def make_task() -> Any:
        given = {name: kind(**options[name].as_dict()) for name, kind in settings.items()}
        return command.make_task(given, options.seed)

    task = together(fabric, make_task)
    content = together(fabric, task.fingerprints)
    together(fabric, _same_data(fabric, content, options.data.path))
    groups = (*settings, "optim", "trainer")
    config = {
        "seed": options.seed,
        **{f"{CONTENT}{name}": value for name, value in content.items()},
        **_flat({name: options[name].as_dict() for name in groups}),
    }
    run = together(
        fabric,
        lambda: RunDirectory(
            output,
            config,
            resume=options.resume,
            writes=fabric.is_global_zero,
            defaults=_defaults({**settings, "optim": Optimization, "trainer": type(trainer)}),
        ),
    )
    with failures_shared(fabric, output), memory_explained:
        return _run(command, task, optim, trainer, fabric, run, options, progress, signals)


def _run(
    command: TrainingCommand,
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

    output, results = run.path, command.results()
    resolved = options.clone()
    for name in ("config", "output", "resume"):  # a recipe for another directory
        resolved.pop(name, None)
    progress.note(f"{task.splits.description}; {len(task.card.class_names)} classes")
    progress.note(f"{command.headline(task)}; run in {output}")
    if fabric.world_size > 1:
        progress.note(f"{fabric.world_size} processes, {trainer.strategy}")
    if emulates(trainer.precision, fabric.device):
        progress.note(
            f"this CPU has no instructions for {trainer.precision}: --trainer.precision fp32 would "
            "be many times faster here"
        )

    def begin() -> None:
        if not run.has_checkpoints():  # else settings are compared before anything changes
            run.write_config(resolved.as_dict())

    on_first(fabric, begin)
    progress.note(f"reading the {len(task.val_set):,} validation images once")
    task.check_validation_set(fabric, trainer.timeout_s)
    on_first(fabric, lambda: None if run.log_bytes() else results.write_samples(run, task))
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
        results.write_pictures(run, task)
        results.write_report(run, task, outcome)

    on_first(fabric, write_results)
    progress.note(
        f"best {command.score} {outcome.position.best_score:.4f} at step "
        f"{outcome.position.best_step}; report, pictures and best.safetensors in {output}"
    )
    return 0


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of typed signatures, flat: ``"optim.lr"`` to a value."""
    from wavevit.training.run_directory import plain

    return {
        f"{group}.{parameter.name}": plain(parameter.default)
        for group, kind in settings.items()
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is not parameter.empty
    }


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
        if isinstance(value, dict) and key not in ("args", "options"):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = plain(value)
    return flat

"""Commands that take any model: the function of its task is called."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import Namespace

Command = Callable[..., int]


def task_of(checkpoint: Path) -> str:
    """What a model is for: "classification", "detection", or what else its card says.

    Whatever is no model file counts as a classifier's: loading one explains what is wrong with it.

    Args:
        checkpoint: Model file, run directory with a best.safetensors, or exported model.

    Raises:
        FileNotFoundError: There is none.
        ValueError: An exported model that cannot be read, or a file of one without the others.
    """
    from wavevit.export.archive import export_folder, read_manifest
    from wavevit.export.formats import MAIN_ENDING
    from wavevit.models.card import model_file, read_card_values

    exported = export_folder(checkpoint)
    if exported is not None:
        return read_manifest(exported).task
    path = model_file(checkpoint)
    if not path.exists():
        raise FileNotFoundError(f"--checkpoint: expected a model file, but {path} does not exist")
    if path.name.endswith(tuple(MAIN_ENDING.values())):
        raise ValueError(
            f"{path} may be part of an exported model: give the folder that `wavevit export` "
            "wrote, with its export.json"
        )
    if path.suffix != ".safetensors":
        return "classification"
    try:
        values = read_card_values(path)
    except (OSError, ValueError):
        return "classification"
    return "classification" if values is None else str(values.get("task", "classification"))


def run_for(task: str, commands: Mapping[str, Command], options: "Namespace") -> int:
    """Calls a task's function with the options that it has; null is its own default.

    Args:
        task: Of the model.
        commands: Function of each task.
        options: Parsed options, of all functions.

    Raises:
        ValueError: No such task here, or an option was given that the task's function has not.
    """
    if task not in commands:
        known = " or ".join(commands)
        raise ValueError(f"expected a model for {known}, got one for {task}")
    command = commands[task]
    names = inspect.signature(command).parameters
    for other in commands.values():
        for name, parameter in inspect.signature(other).parameters.items():
            if name not in names and getattr(options, name) != parameter.default:
                raise ValueError(
                    f"--{name.replace('_', '-')} has no meaning for a model for {task}"
                )
    given = {name: getattr(options, name) for name in names}
    return command(**{name: value for name, value in given.items() if value is not None})

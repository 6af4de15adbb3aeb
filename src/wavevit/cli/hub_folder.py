"""``wavevit hub-folder``: a model with its card as a folder for the Hugging Face Hub."""

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def hub_folder(
    source: Path,
    folder: Path,
    name: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    evaluation: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Writes a model with its card as a folder that can be uploaded to the Hugging Face Hub.

    timm and transformers load that of a classifier, too. Nothing is uploaded; the last line says
    how to. Images of the data and paths of this machine stay out of the folder.

    Args:
        source: Model file, or run directory.
        folder: To write.
        name: Of the model; null: the folder's.
        license: Of the weights, such as apache-2.0 or cc-by-nc-4.0; null: none is stated.
        dataset: Name of the data that results were measured on; null: its folder's.
        evaluation: Folder of `wavevit evaluate --output`, whose results and pictures are shown;
            null: the results that the run ended with.
        overwrite: Replace the model in the folder.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No model, or no evaluation.
        FileExistsError: The folder holds a model and `overwrite` is not given.
        ValueError: Not a model file, or the evaluation is one of another model.
    """
    from wavevit.hub.folder import save_hub_folder

    files = save_hub_folder(
        source,
        folder,
        name=name,
        license=license,
        dataset=dataset,
        evaluation=evaluation,
        overwrite=overwrite,
    )
    for file in files:
        sys.stdout.write(f"written: {file} ({file.stat().st_size / 1e6:.2f} MB)\n")
    if license is None:
        sys.stdout.write("no license is stated: --license apache-2.0, for instance, states one\n")
    sys.stdout.write(f"upload it with: hf upload USER/{name or folder.resolve().name} {folder}\n")
    return 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_argument("source", type=Path, help="Model file, or run directory.")
    parser.add_argument("folder", type=Path, help="Folder to write.")
    parser.add_function_arguments(hub_folder, skip={"source", "folder"})


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    names = inspect.signature(hub_folder).parameters
    return hub_folder(**{name: getattr(options, name) for name in names})

"""Exported models in the place of checkpoints, for the commands that evaluate and predict."""

from pathlib import Path

from wavevit.export.archive import export_folder, read_manifest
from wavevit.export.loading import LoadedExport, load_exported


def exported_model(
    checkpoint: Path, *, task: str, device: str, precision: str
) -> LoadedExport | None:
    """The exported model that a checkpoint names, or None where it names something else.

    Args:
        checkpoint: As given.
        task: What the model must be for.
        device: As given: "auto", "cpu" or "cuda".
        precision: As given.

    Raises:
        FileNotFoundError: A file of the export is missing.
        ValueError: Damaged, for something else, or asked to run as it cannot.
    """
    folder = export_folder(checkpoint)
    if folder is None:
        return None
    if precision != "fp32":
        raise ValueError(
            f"an exported model runs as it was exported; leave out --precision {precision}"
        )
    runs_on = read_manifest(folder).device
    if device not in ("auto", runs_on):
        raise ValueError(
            f"{folder} was exported for {runs_on}; leave out --device {device}, or export the "
            "model again"
        )
    return load_exported(folder, task=task)


def check_eager(checkpoint: Path, runtime: str) -> None:
    """Raises if an exported model is to be run in another runtime than its own.

    Args:
        checkpoint: As given.
        runtime: As given.

    Raises:
        ValueError: It is.
    """
    if runtime != "eager" and export_folder(checkpoint) is not None:
        raise ValueError(
            f"an exported model runs in its own runtime; leave out --runtime {runtime}"
        )

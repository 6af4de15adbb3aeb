"""The best network of a run as a model file, and back."""

from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wavevit.models.card import save_model
from wavevit.training.run_directory import RunDirectory

BEST = "best.safetensors"


def write_best(run: RunDirectory, state: dict[str, Tensor], card: Any) -> None:
    """Writes ``best.safetensors``; the one before is replaced at once.

    Args:
        run: Where.
        state: The network's weights, whole.
        card: How to rebuild and feed it, with its results.
    """
    save_model(run.path / BEST, state, card)


def read_best(run: RunDirectory) -> dict[str, Tensor]:
    """The weights in ``best.safetensors``.

    Args:
        run: Where.

    Raises:
        ValueError: The file is gone or damaged.
    """
    path = run.path / BEST
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the best network of the run cannot be read from {path} ({error}); its last "
            "weights are in the newest checkpoint"
        ) from error

"""Model files: safetensors weights with a card that says how to rebuild and feed the network."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_METADATA_KEY = "wavevit"


@dataclass(frozen=True)
class ModelCard:
    """How to rebuild a network and prepare its input, stored inside its safetensors file.

    Attributes:
        model: timm model name.
        model_args: Arguments of ``timm.create_model`` besides the name.
        task: "classification".
        class_names: One name per output, in order; empty when unknown.
        image_size: Rows and columns of the input, pixels.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].
        crop_pct: Centre crop over resized short side, in (0, 1].
        interpolation: "bicubic" or "bilinear".
        metrics: Measured results, e.g. ``{"top1": 0.839}``, as fractions.
    """

    model: str
    model_args: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    class_names: list[str] = field(default_factory=list)
    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.96
    interpolation: str = "bicubic"
    metrics: dict[str, float] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network with fresh weights, in evaluation mode.

        Raises:
            ValueError: timm has no such model, or it does not take these arguments.
        """
        return create_model(self.model, **self.model_args).eval()


def create_model(name: str, **arguments: Any) -> nn.Module:
    """``timm.create_model`` with errors that say what to do.

    Args:
        name: timm model name.
        **arguments: The model's arguments.

    Raises:
        ValueError: timm has no such model, or it does not take these arguments.
    """
    if ":" not in name and not timm.is_model(name):  # "hf-hub:..." and the like are timm's matter
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise ValueError(f"timm has no model named {name!r}{hint}")
    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except TypeError as error:
        raise ValueError(f"{name} does not take these arguments: {error}") from error
    except RuntimeError as error:  # timm's "No pretrained weights exist", Hugging Face's refusals
        raise ValueError(f"cannot build {name}: {' '.join(str(error).split())}") from error
    return model


def save_model(path: Path, state: dict[str, Tensor], card: ModelCard) -> None:
    """Writes weights and card as one safetensors file; an existing file is replaced at once.

    Args:
        path: File to write.
        state: The network's state dict.
        card: What to store with it.
    """
    contiguous = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    metadata = {"format": "pt", _METADATA_KEY: json.dumps(asdict(card), sort_keys=True)}
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(contiguous, partial, metadata=metadata)
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_card(path: Path) -> ModelCard | None:
    """The card of a safetensors file, or None when it has none.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a safetensors file, or its card is not one of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a model file, but {path} does not exist")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    if text is None:
        return None
    try:
        values = json.loads(text)
        for name in ("image_size", "mean", "std"):
            values[name] = tuple(values[name])
        return ModelCard(**values)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the model card inside {path} cannot be read ({error}); was it written by a newer "
            "version of wavevit?"
        ) from error

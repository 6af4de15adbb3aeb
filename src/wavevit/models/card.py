"""Model files: safetensors weights with a card that says how to rebuild and feed the network."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wavevit.files import replacing

_METADATA_KEY = "wavevit"

AnyCard = TypeVar("AnyCard", bound="Card")


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


class Card(Protocol):
    """A data class of plain values that says how to rebuild and feed a network."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def task(self) -> str:
        """What the network does; tells one kind of card from another."""
        ...


def save_model(path: Path, state: dict[str, Tensor], card: Card) -> None:
    """Writes weights and card as one safetensors file; an existing file is replaced at once.

    Args:
        path: File to write.
        state: The network's state dict.
        card: What to store with it.
    """
    contiguous = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    metadata = {"format": "pt", _METADATA_KEY: json.dumps(asdict(card), sort_keys=True)}
    with replacing(path) as partial:
        save_file(contiguous, partial, metadata=metadata)


def model_file(path: Path) -> Path:
    """The model file that a path names.

    Args:
        path: The file itself, a run directory, or a hub folder.

    Raises:
        FileNotFoundError: No model in the directory.
    """
    if not path.is_dir():
        return path
    for name in ("best.safetensors", "model.safetensors"):  # of a run, of a hub folder
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"expected best.safetensors in the run directory {path}")


def load_built(network: nn.Module, path: Path) -> None:
    """Loads the weights of a model file into the network that its card has built.

    Args:
        network: From the card's ``build``.
        path: The file.

    Raises:
        ValueError: Weights are missing, of another shape, or none of the network's.
    """
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights in {path} do not fit its card: {reason}") from error


def read_card(path: Path) -> ModelCard | None:
    """The card of a safetensors file with a classifier, or None when it has no card.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a safetensors file, or its card is not one of a classifier.
    """
    values = read_card_values(path, task="classification")
    return None if values is None else card_from(ModelCard, values, path)


def read_card_values(path: Path, *, task: str | None = None) -> dict[str, Any] | None:
    """The values of the card in a safetensors file, or None when it has none.

    Args:
        path: The file.
        task: What the card must be of; None takes any, and "task" among the values tells.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a safetensors file, its card is damaged, or of another task.
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
        values: dict[str, Any] = json.loads(text)
        found = values.get("task", "classification")
    except (AttributeError, json.JSONDecodeError) as error:
        raise ValueError(_unreadable(path, error)) from error
    if task is not None and found != task:
        raise ValueError(f"{path} holds a model for {found}, where one for {task} is expected")
    return values


def read_card_of(kind: type[AnyCard], path: Path, *, task: str, what: str) -> AnyCard:
    """The card of a safetensors file that must have one.

    Args:
        kind: Of card.
        path: The file.
        task: What the card must be of.
        what: The kind of network, for the message, such as "detector".

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a safetensors file, without a card, or with another kind of model.
    """
    values = read_card_values(path, task=task)
    if values is None:
        raise ValueError(
            f"{path} does not say which {what} it holds; convert it with `wavevit convert`, or "
            "take the best.safetensors of a run"
        )
    return card_from(kind, values, path)


def card_from(kind: type[AnyCard], values: dict[str, Any], path: Path) -> AnyCard:
    """A card from its values; lists become tuples where the card has tuples.

    Args:
        kind: Of card.
        values: From `read_card_values`.
        path: The file, for the message.

    Raises:
        ValueError: They are not those of such a card.
    """
    try:
        defaults = kind(**values)
        # JSON has no tuples.
        tuples = {
            each.name: tuple(getattr(defaults, each.name))
            for each in fields(kind)
            if str(each.type).startswith("tuple")
        }
        return replace(defaults, **tuples)
    except TypeError as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"the model card inside {path} cannot be read ({error}); was it written by a newer version "
        "of wavevit?"
    )

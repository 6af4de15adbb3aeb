"""Reading weights: ours, official and timm's files, safely, with every key accounted for."""

import argparse
import logging
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wavevit.models import official
from wavevit.models.card import ModelCard, create_model, model_file, read_card, save_model
from wavevit.models.wave_vit import VARIANTS

logger = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What became of every key of a checkpoint and of a network.

    Attributes:
        loaded: Number of entries that were loaded.
        missing: Entries of the network that the checkpoint lacks.
        unexpected: Entries of the checkpoint that the network lacks.
        mismatched: Entries of both with different shapes: ``"name: (file) -> (network)"``.
        dropped: Entries left out on purpose: a head with another class count.
        complete: Whether nothing but a head, dropped or absent, differs.
    """

    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    complete: bool = True

    def summary(self) -> str:
        """One line; the first few names of each kind."""
        parts = [f"{self.loaded} entries loaded"]
        for kind in ("missing", "unexpected", "mismatched", "dropped"):
            names = getattr(self, kind)
            if names:
                more = f", ... ({len(names)} in all)" if len(names) > 4 else ""
                parts.append(f"{kind}: {', '.join(names[:4])}{more}")
        return "; ".join(parts)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a ``.safetensors`` or PyTorch file, wrappings removed; on the CPU.

    Pickled code is never run: a file that needs it is refused.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, not a checkpoint, or in need of code to load.
    """
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "missing"
        raise FileNotFoundError(f"expected a checkpoint file, but {path} is {kind}")
    if path.suffix == ".safetensors":
        try:
            checkpoint: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    else:
        checkpoint = _read_pickle(path)
    try:
        return dict(official.unwrap(checkpoint))
    except ValueError as error:
        raise ValueError(f"{path} holds no weights: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        # Training scripts store their options beside the weights; a Namespace holds data only.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of unusual pickle protocols: it loads or is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = _unsafe_globals(path)
        if needs:
            raise ValueError(
                f"refused {path}: loading it would run code ({', '.join(needs)}); ask its author "
                "for the plain state dict or a safetensors file"
            ) from error
        raise ValueError(f"{path} is not a PyTorch checkpoint, or is damaged") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        AssertionError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a PyTorch checkpoint, or is damaged: {reason}") from error


def _unsafe_globals(path: Path) -> list[str]:
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, IndexError):
        return ["its pickle cannot be analysed"] if _looks_pickled(path) else []


def _looks_pickled(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(4)
    return start[:2] == b"PK" or start[:1] == b"\x80"


def load_weights(model: nn.Module, path: str | Path, *, strict: bool = True) -> LoadReport:
    """Loads a checkpoint file into a network and says what became of every key.

    Our names are understood and, for Wave-ViT and detectors, those of the official files. The head
    is left out, with a message, when class counts differ, and keeps its fresh weights when the file
    has none.

    Args:
        model: The network; a Wave-ViT, its ``features_only`` form, or any other.
        path: ``.safetensors`` or PyTorch file.
        strict: Refuses, before anything is changed, a file that does not fit; else loads what
            fits and reports the rest.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unreadable file; with ``strict`` also one that does not fit the network.
    """
    path = Path(path)
    state, report = match_weights(model, read_checkpoint(path))
    if strict and not report.complete:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {report.summary()}")
    model.load_state_dict(state, strict=False)
    incomplete = report.missing or report.dropped
    logger.log(logging.WARNING if incomplete else logging.INFO, "%s: %s", path, report.summary())
    return report


def load_model(path: Path) -> tuple[nn.Module, ModelCard]:
    """Network and card of a model file, in evaluation mode on the CPU.

    Args:
        path: A file written by `save_model`, or a run directory that holds ``best.safetensors``.

    Raises:
        FileNotFoundError: No such file, or no model in the directory.
        ValueError: No card, or the weights do not fit it.
    """
    path = model_file(path)
    card = read_card(path) if path.suffix == ".safetensors" or not path.exists() else None
    if card is None:
        raise ValueError(
            f"{path} does not say which network it is for: name the network, or convert an "
            f"official checkpoint with `wavevit convert {path} OUT.safetensors`"
        )
    model = card.build()
    load_weights(model, path)
    return model, card


def match_weights(
    model: nn.Module, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """Compares a checkpoint with a network, which is not changed.

    Args:
        model: The network.
        state: Entries of the checkpoint, official or our names.

    Returns:
        The entries that can be loaded, and what became of every key.

    Raises:
        ValueError: An official wavelet buffer does not hold the Haar filters.
    """
    # Networks of other rooms, such as detectors, bring the names of their own origin along.
    adapt = getattr(model, "adapt_checkpoint", None) or partial(official.adapt, model)
    state, dropped = adapt(state)
    expected = model.state_dict()
    heads = (*official.head_prefixes(model), "class_attn.", "norm.")
    report = LoadReport(
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        mismatched=[
            f"{name}: {tuple(value.shape)} in the file, {tuple(expected[name].shape)} here"
            for name, value in state.items()
            if name in expected and value.shape != expected[name].shape
        ],
        dropped=dropped,
    )
    report.complete = not (
        report.unexpected
        or report.mismatched
        or any(not name.startswith(heads) and name not in dropped for name in report.missing)
    )
    usable = {
        name: value
        for name, value in state.items()
        if name in expected and value.shape == expected[name].shape
    }
    report.loaded = len(usable)
    return usable, report


def recognise(state: dict[str, Tensor]) -> ModelCard:
    """The Wave-ViT variant and arguments that a checkpoint's shapes speak of.

    Args:
        state: Entries under official or our names.

    Raises:
        ValueError: No variant of ours has these shapes.
    """
    state = official.rename(state)
    weight = state.get("stages.0.patch_embed.conv.0.weight")
    if weight is None:
        some = ", ".join(list(state)[:3])
        raise ValueError(f"expected the weights of a Wave-ViT, got entries such as {some}")
    embeddings = [state.get(f"stages.{i}.patch_embed.proj.weight") for i in range(4)]
    if weight.ndim != 4 or any(e is None or e.ndim != 4 for e in embeddings):
        raise ValueError("expected the weights of a Wave-ViT, got a damaged or partial set of them")
    dims = tuple(e.shape[0] for e in embeddings if e is not None)
    depths = tuple(
        len({name.split(".")[3] for name in state if name.startswith(f"stages.{i}.blocks.")})
        for i in range(4)
    )
    shape = (weight.shape[0], dims, depths)
    matching = [
        name
        for name, variant in VARIANTS.items()
        if (variant["stem_dim"], variant["embed_dims"], variant["depths"]) == shape
    ]
    if not matching:
        raise ValueError(
            f"no variant has stem {weight.shape[0]}, widths {dims} and depths {depths}; "
            f"known: {', '.join(VARIANTS)}"
        )
    head = state.get("head.weight")
    if head is not None and head.ndim != 2:
        raise ValueError(f"head.weight should be a matrix, got the shape {tuple(head.shape)}")
    arguments: dict[str, Any] = {"num_classes": 0 if head is None else head.shape[0]}
    if weight.shape[1] != 3:
        arguments["in_chans"] = weight.shape[1]
    if "aux_head.weight" in state:
        arguments["token_label"] = True
    if not any(key.startswith("class_attn.") for key in state):
        arguments["global_pool"] = "avg"
    return ModelCard(model=matching[0], model_args=arguments)


def convert(source: Path, target: Path, *, overwrite: bool = False) -> tuple[ModelCard, LoadReport]:
    """Rewrites an official Wave-ViT checkpoint as a safetensors file with our names and a card.

    Args:
        source: Official file, or one with our names.
        target: File to write, ending in ``.safetensors``.
        overwrite: Replaces an existing target.

    Returns:
        What was recognised, and what became of every key.

    Raises:
        FileNotFoundError: No source file, or no folder for the target.
        FileExistsError: The target exists and ``overwrite`` is not set.
        ValueError: Unreadable or unknown weights; keys missing, unexpected or mismatched.
    """
    if source.suffix == ".ckpt":
        raise ValueError(
            f"{source} is the checkpoint of a run; its model file is best.safetensors beside the "
            "checkpoints folder"
        )
    if target.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {target}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; choose another name or pass --overwrite")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder of the output does not exist: {target.parent}")
    state = read_checkpoint(source)
    card = (read_card(source) if source.suffix == ".safetensors" else None) or recognise(state)
    with torch.device("meta"):
        model = create_model(card.model, **card.model_args)
    usable, report = match_weights(model, state)
    if not report.complete or report.missing:
        raise ValueError(f"{source} looks like {card.model} but does not fit: {report.summary()}")
    save_model(target, usable, card)
    return card, report

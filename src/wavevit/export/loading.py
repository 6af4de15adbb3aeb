"""Exported models, ready to use: the model of the card, with files in the place of its parts.

Legend: B images of a batch, H W rows and columns of an image, R regions of a batch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from wavevit.detection.card import DetectorCard
from wavevit.export.archive import (
    REST,
    ExportedPart,
    Manifest,
    check_files,
    export_folder,
    read_manifest,
)
from wavevit.export.exporting import AnyCard
from wavevit.export.formats import MAIN_ENDING
from wavevit.export.parts import restored
from wavevit.export.runners import Runner, open_file
from wavevit.models.card import ModelCard, card_from
from wavevit.segmentation.card import SegmenterCard

_CARDS: dict[str, type[AnyCard]] = {
    "classification": ModelCard,
    "detection": DetectorCard,
    "segmentation": SegmenterCard,
}
_STEP = 32  # sides of a detector's canvas are multiples of so many pixels
_FEWEST_ROWS = 2  # a length of one is a special case to every exporter


@dataclass(frozen=True)
class LoadedExport:
    """A model whose parts run in another runtime.

    Attributes:
        model: Used as the original; in fp32, without gradients.
        card: Its card.
        manifest: What the folder says.
        device: Where it runs.
    """

    model: nn.Module
    card: AnyCard
    manifest: Manifest
    device: torch.device


class FilePart(nn.Module):
    """A part of a model that a file computes.

    Images that are smaller than the file takes are padded with zeros, which is the mean colour;
    maps then have more cells, and logits of pixels are cut to the size of the images that came.

    Args:
        run: Runs the file.
        part: What it takes and gives.
        kind: What it stands for.
        pads: Whether the network takes larger images for the same.

    Attributes:
        num_classes: Of a classifier.
        stands_for_weights: That `finite_outputs` looks at it, as at modules that have weights.
    """

    num_classes: int
    stands_for_weights: bool = True

    def __init__(
        self, run: Runner, part: ExportedPart, kind: type[nn.Module], *, pads: bool
    ) -> None:
        super().__init__()
        self._run = run
        self._part = part
        self._pads = pads
        self._kind = kind
        self.num_classes = 0
        self._takes_images = part.inputs == ["images"]
        # As of a network of timm: what messages call it.
        self.pretrained_cfg = {"architecture": "an exported model"}

    def forward(self, *inputs: Tensor) -> Any:
        """What the part gives for its arguments.

        Args:
            *inputs: As of the part.

        Raises:
            ValueError: Images of a size or a number that the file does not take.
        """
        rows = len(inputs[0])
        arguments = [tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs]
        size = tuple(inputs[0].shape[2:]) if self._takes_images else None
        if size is not None:
            arguments = [self._fitted(arguments[0])]
        elif rows < _FEWEST_ROWS:
            arguments = [_filled(tensor, rows) for tensor in arguments]
        outputs = self._run(arguments)
        if size is not None and arguments[0].shape[2:] != size and self._part.outputs == ["logits"]:
            outputs = [output[..., : size[0], : size[1]] for output in outputs]
        if len(outputs[0]) != rows:
            outputs = [output[:rows] for output in outputs]
        return restored(self._kind, self._part.outputs, outputs)

    def _fitted(self, images: Tensor) -> Tensor:
        """Images that the file takes."""
        H, W = images.shape[2:]
        shape = self._part.shapes[0]
        least = [self._part.least.get(name, 1) for name in ("height", "width")]
        fixed = [side for side in shape[2:] if isinstance(side, int)]
        if fixed and fixed != [H, W]:
            raise ValueError(
                f"the exported network takes images of {fixed[0]}x{fixed[1]} pixels only, got "
                f"{H}x{W}; export it with --image-size {H}"
            )
        if fixed or (least[0] <= H and least[1] <= W):
            return images
        if not self._pads:
            raise ValueError(
                f"the exported network takes images from {least[0]}x{least[1]} pixels, got "
                f"{H}x{W}; take a larger --image-size"
            )
        more = [
            -(-max(side, smallest) // _STEP) * _STEP - side
            for side, smallest in zip((H, W), least, strict=True)
        ]
        return F.pad(images, (0, more[1], 0, more[0]))


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """The rows of a tensor and rows of zeros: for two things where there is one or none.

    Args:
        tensor: With one row, or the same number of rows, for each thing.
        rows: Things, 0 or 1.
    """
    length = _FEWEST_ROWS * (len(tensor) // rows if rows else 1)
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor), *tensor.shape[1:])])


def load_exported(path: Path, *, task: str | None = None) -> LoadedExport:
    """The model of an exported folder, for evaluation.

    Args:
        path: The folder, or a file in it.
        task: What the model must be for; None takes any.

    Raises:
        FileNotFoundError: No such folder, or a file of it is missing.
        ValueError: Not an export, damaged, for something else, or its runtime is not installed.
    """
    folder = export_folder(path)
    if folder is None:
        raise FileNotFoundError(f"expected a folder with an export.json, got {path}")
    manifest = read_manifest(folder)
    if manifest.task not in _CARDS or task not in (None, manifest.task):
        raise ValueError(
            f"{folder} holds a model for {manifest.task}, where one for "
            f"{task or ' or '.join(_CARDS)} is expected"
        )
    if manifest.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{folder} was exported for CUDA, which is not available here")
    check_files(folder, manifest)
    card = card_from(_CARDS[manifest.task], dict(manifest.card), folder)
    model = card.build()
    _replace_parts(model, folder, manifest)
    if (folder / REST).is_file():
        model.load_state_dict(load_file(folder / REST), strict=False)
    if manifest.parts[0].path == "":
        part = _file_part(model, folder, manifest, manifest.parts[0])
        part.num_classes = int(getattr(model, "num_classes", 0))
        model = part
    return LoadedExport(model.eval(), card, manifest, torch.device(manifest.device))


def _replace_parts(model: nn.Module, folder: Path, manifest: Manifest) -> None:
    for part in manifest.parts:
        if part.path:
            module = model.get_submodule(part.path)
            parent, _, name = part.path.rpartition(".")
            setattr(model.get_submodule(parent), name, _file_part(module, folder, manifest, part))


def _file_part(module: nn.Module, folder: Path, manifest: Manifest, part: ExportedPart) -> FilePart:
    run = open_file(folder / (part.name + MAIN_ENDING[manifest.format]), manifest.format)
    return FilePart(run, part, type(module), pads=bool(part.path))

"""A model written as an exported folder."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from wavevit.detection.card import DetectorCard
from wavevit.detection.detector import Detector
from wavevit.export.archive import (
    REST,
    ExportedPart,
    Manifest,
    new_folder,
    write_manifest,
)
from wavevit.export.formats import MAIN_ENDING, check_format, write
from wavevit.export.parts import parts_of
from wavevit.export.programs import program_of
from wavevit.export.quantization import quantize
from wavevit.models.card import ModelCard
from wavevit.models.runtimes import prepare
from wavevit.segmentation.card import SegmenterCard

AnyCard = ModelCard | DetectorCard | SegmenterCard


@dataclass(frozen=True)
class Exported:
    """What has been written.

    Attributes:
        folder: Where.
        manifest: What is in it.
    """

    folder: Path
    manifest: Manifest


def export_model(
    model: nn.Module,
    card: AnyCard,
    folder: Path,
    form: str,
    *,
    calibration: Iterable[Tensor] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Writes a model as a new folder of files for a runtime.

    Args:
        model: In evaluation mode, on the device where it is to run.
        card: Its card.
        folder: To be made.
        form: "onnx", "torch", "aotinductor" or "openvino".
        calibration: For int8: normalised images ``(B, 3, H, W)`` as a classifier sees them in use.
        say: Takes a line for each part that is done.

    Returns:
        What has been written; the folder is as it was after an error.

    Raises:
        FileExistsError: The folder exists.
        FileNotFoundError: The folder that it is to be in does not.
        ValueError: The format cannot be written here, or cannot express the network; int8 is asked
            for of something else than a classifier in ONNX.
    """
    if calibration is not None and (form != "onnx" or not isinstance(card, ModelCard)):
        raise ValueError(
            f"int8 is for classifiers in the format onnx, got a model for {card.task} and {form}"
        )
    device = next(model.parameters()).device.type
    check_format(form, device)
    size = card.image_size if isinstance(card, ModelCard) else (0, 0)
    prepared = prepare(model, "openvino" if form == "openvino" else "eager").eval()
    metadata = describe(model, card)
    written: list[ExportedPart] = []
    with new_folder(folder) as partial:
        for part in parts_of(prepared, size):
            program = program_of(prepared.get_submodule(part.path), part, size)
            write(program, form, partial, metadata)
            written.append(ExportedPart.of(program))
            say(summary(written[-1]))
            if calibration is not None:
                file = partial / (part.name + MAIN_ENDING[form])
                say(f"{part.name}: {quantize(file, calibration)} products in int8")
        inside = tuple(f"{part.path}." if part.path else "" for part in written)
        rest = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in model.state_dict().items()
            if not name.startswith(inside)
        }
        if rest:
            save_file(rest, partial / REST)
        manifest = Manifest(
            form,
            card.task,
            asdict(card),
            written,
            device,
            precision="fp32" if calibration is None else "int8",
        )
        write_manifest(partial, manifest)
    return Exported(folder, manifest)


def describe(model: nn.Module, card: AnyCard) -> dict[str, str]:
    """What somebody with only a file of the export has to know, as names and texts.

    Args:
        model: The model.
        card: Its card.
    """
    if isinstance(card, DetectorCard):
        assert isinstance(model, Detector)
        mean, std = (
            [round(value, 6) for value in values.flatten().tolist()]
            for values in (model.preprocess.mean, model.preprocess.std)
        )
    else:
        mean, std = list(card.mean), list(card.std)
    return {
        "wavevit": json.dumps(asdict(card), sort_keys=True),
        "task": card.task,
        "classes": json.dumps(card.class_names),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
    }


def summary(part: ExportedPart) -> str:
    """A part in one line.

    Args:
        part: Of an export.
    """
    arguments = [
        f"{name} ({', '.join(map(str, shape))})"
        for name, shape in zip(part.inputs, part.shapes, strict=True)
    ]
    sides = [f"{name} {least} or more" for name, least in part.least.items()]
    return f"{part.name}: {', '.join(arguments + sides)}"

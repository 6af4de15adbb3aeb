"""ONNX Runtime without PyTorch gives what PyTorch gives, from the picture to the probability."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from wavevit.data.transforms import eval_transform
from wavevit.models.card import ModelCard

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx", reason='pip install "wavevit[export]"')
pytest.importorskip("onnxscript", reason='pip install "wavevit[export]"')
pytest.importorskip("onnxruntime", reason='pip install "wavevit[examples]"')

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/onnxruntime_predict.py"
CARD = ModelCard(
    "wavevit_test",
    {"num_classes": 3},
    class_names=["ant", "bee", "cat"],
    image_size=(48, 64),
    crop_pct=0.9,
)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = CARD.build()
    with torch.no_grad():
        for parameter in network.parameters():  # so that pictures differ in the logits
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def export(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network.onnx that holds its card, for any number of images."""
    folder = tmp_path_factory.mktemp("export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own exporter
        program = torch.onnx.export(
            network,
            (torch.randn(2, 3, *CARD.image_size),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"wavevit": json.dumps(asdict(CARD))})
    onnx.save(model, folder / "network.onnx")
    return folder


def picture(width: int, height: int) -> Image.Image:
    """Coarse noise: what a difference of a pixel in resizing or cropping changes."""
    rng = np.random.default_rng(width)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(160, 120), (97, 201), (64, 48), (40, 44), (500, 123)])
def test_pictures_are_prepared_as_evaluation_does(
    export: Path, load_example: Callable[[str], ModuleType], size: tuple[int, int]
) -> None:
    classifier = load_example("onnxruntime_predict").Classifier(export)
    transform = eval_transform(
        CARD.image_size,
        crop_pct=CARD.crop_pct,
        interpolation=CARD.interpolation,
        mean=CARD.mean,
        std=CARD.std,
    )
    expected = transform(picture(*size))
    np.testing.assert_allclose(classifier.prepare(picture(*size)), expected, rtol=0, atol=1e-5)


def test_probabilities_are_those_of_torch(
    export: Path, network: torch.nn.Module, load_example: Callable[[str], ModuleType]
) -> None:
    classifier = load_example("onnxruntime_predict").Classifier(export)
    pictures = [picture(160, 120), picture(97, 201), picture(70, 70)]
    batch = torch.from_numpy(np.stack([classifier.prepare(each) for each in pictures]))
    with torch.inference_mode():
        expected = network(batch).softmax(1).numpy()
    found = classifier(pictures)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-3, "the pictures should differ"


def test_the_script_runs_without_torch(
    export: Path, tmp_path: Path, load_example: Callable[[str], ModuleType]
) -> None:
    picture(160, 120).save(tmp_path / "photo.png")
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['predict', {str(export)!r}, {str(tmp_path / 'photo.png')!r}]\n"
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
        "loaded = {'torch', 'torchvision', 'timm', 'wavevit'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    classifier = load_example("onnxruntime_predict").Classifier(export)
    (probabilities,) = classifier([picture(160, 120)])
    best = int(probabilities.argmax())
    assert f"photo.png: {CARD.class_names[best]} {probabilities[best]:.4f}, " in done.stdout


def test_a_network_without_its_card_is_named(
    export: Path, tmp_path: Path, load_example: Callable[[str], ModuleType]
) -> None:
    model = onnx.load(export / "network.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(SystemExit, match=r"bare.onnx does not say how to prepare pictures"):
        load_example("onnxruntime_predict").Classifier(tmp_path / "bare.onnx")

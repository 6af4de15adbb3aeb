"""transformers wraps a Wave-ViT: its numbers are timm's, before and after saving."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from wavevit.models.weights import load_model

transformers = pytest.importorskip("transformers", reason='pip install "wavevit[examples]"')

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, load_example: Callable[[str], ModuleType]) -> Path:
    made: Path = load_example("transformers_timm_wrapper").make_folder(
        tmp_path / "mine", "wavevit_test"
    )
    return made


def test_logits_labels_and_preprocessing_are_those_of_the_model_file(
    folder: Path, load_example: Callable[[str], ModuleType]
) -> None:
    classifier, processor = load_example("transformers_timm_wrapper").load(folder)
    network, card = load_model(folder)
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    pixels = processor(Image.fromarray(noise), return_tensors="pt")["pixel_values"]
    config = timm.data.resolve_model_data_config(network) | {
        "input_size": (3, *card.image_size),
        "crop_pct": card.crop_pct,
    }
    expected = timm.data.create_transform(**config)(Image.fromarray(noise))[None]
    torch.testing.assert_close(pixels, expected)
    with torch.inference_mode():
        torch.testing.assert_close(classifier(pixels).logits, network(pixels), rtol=1e-5, atol=1e-5)
    assert classifier.config.id2label == {0: "cat", 1: "dog", 2: "horse"}


def test_saving_and_loading_by_transformers_keeps_the_logits_and_timm_reads_it(
    folder: Path, tmp_path: Path, load_example: Callable[[str], ModuleType]
) -> None:
    example = load_example("transformers_timm_wrapper")
    classifier, _ = example.load(folder)
    classifier.save_pretrained(tmp_path / "again")
    again, _ = example.load(tmp_path / "again")
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(again(x).logits, classifier(x).logits, rtol=1e-5, atol=1e-5)
        hidden = again(x, output_hidden_states=True)
        torch.testing.assert_close(hidden.logits, classifier(x).logits, rtol=1e-5, atol=1e-5)
    assert [tuple(state.shape[2:]) for state in hidden.hidden_states] == [
        (64 // stride, 96 // stride) for stride in (4, 8, 16, 32)
    ]


def test_a_new_head_for_fine_tuning_learns(folder: Path) -> None:
    model = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, labels = torch.randn(5, 3, 64, 64), torch.arange(5)
    losses = []
    for _ in range(6):
        output = model.train()(x, labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_timm_wrapper_model_pools_as_timm_does(folder: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    network, _ = load_model(folder)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        output = model(x)
        maps = network.forward_features(x)
        torch.testing.assert_close(output.last_hidden_state, maps, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            output.pooler_output, network.forward_head(maps, pre_logits=True), rtol=1e-5, atol=1e-5
        )


def test_the_backbone_gives_the_maps_of_timm(load_example: Callable[[str], ModuleType]) -> None:
    wrapped = load_example("transformers_timm_wrapper").backbone("wavevit_test")
    alone = timm.create_model("wavevit_test", features_only=True, out_indices=(1, 2, 3)).eval()
    alone.load_state_dict(wrapped._backbone.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(list(wrapped(x).feature_maps), alone(x))
    assert wrapped.channels == alone.feature_info.channels()

"""A teacher answers as its own network would, stays frozen, and is refused when it does not fit."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wavevit.models.card import ModelCard, create_model, save_model
from wavevit.models.spatial_logits import spatial_logits
from wavevit.models.teacher import Teacher

NAMES = ["ant", "bee", "cat"]
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def own_file(path: Path, name: str = "wavevit_test", **card: Any) -> Path:
    """A model file of ours with random weights."""
    torch.manual_seed(0)
    arguments = {"num_classes": len(NAMES), **card.pop("model_args", {})}
    values = {"class_names": NAMES, "image_size": (64, 64), **card}
    model_card = ModelCard(name, arguments, **values)
    save_model(path, model_card.build().state_dict(), model_card)
    return path


def plain_file(path: Path, name: str, num_classes: int, **arguments: Any) -> Path:
    """Weights alone, as anybody's training script writes them."""
    torch.manual_seed(0)
    torch.save(create_model(name, num_classes=num_classes, **arguments).state_dict(), path)
    return path


def teacher(name: str | None, weights: Path | None, *args: Any, **options: Any) -> Teacher:
    return Teacher(name, weights, *args, **{"mean": HALF, "std": HALF, **options})


def pixels(size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


def normalised(values: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize("name", ["wavevit_test", "test_resnet"])
def test_images_of_another_normalisation_get_the_networks_own_answer(
    name: str, tmp_path: Path
) -> None:
    path = own_file(tmp_path / "m.safetensors", name, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    one = teacher(None, path)
    given = normalised(pixels(), HALF, HALF)
    own = normalised(pixels(), IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        expected = one.model(own)
    torch.testing.assert_close(one(given), expected, rtol=1e-4, atol=1e-4)
    expected = spatial_logits(one.model, own)
    torch.testing.assert_close(one.spatial_logits(given), expected, rtol=1e-4, atol=1e-4)
    assert one.num_classes == 3
    assert one.class_names == NAMES
    assert one.grid == tuple(expected.shape[-2:]) == (2, 2)
    assert one.image_size is None


def test_a_run_directory_names_its_model(tmp_path: Path) -> None:
    own_file(tmp_path / "best.safetensors")
    assert teacher(None, tmp_path).card.model == "wavevit_test"
    assert teacher("wavevit_test", tmp_path, 3).num_classes == 3


def test_plain_weights_say_how_many_classes_they_have(tmp_path: Path) -> None:
    one = teacher("test_resnet", plain_file(tmp_path / "w.pth", "test_resnet", 5))
    assert one.num_classes == 5
    assert one.class_names == []
    # timm's own data sheet of the network.
    assert one.card.image_size == (160, 160)
    assert one.card.model_args == {"num_classes": 5}


def test_a_teacher_is_frozen_and_stays_in_evaluation_mode(tmp_path: Path) -> None:
    one = teacher(None, own_file(tmp_path / "m.safetensors"))
    student = nn.ModuleDict({"teacher": one, "own": nn.Linear(2, 2)}).train()
    assert student["own"].training
    assert not any(module.training for module in one.modules())
    assert not any(parameter.requires_grad for parameter in one.parameters())
    inputs = pixels().requires_grad_()
    assert not one(inputs).requires_grad
    assert not one.spatial_logits(inputs).requires_grad
    # What it makes may be used in a loss, which tensors of inference mode may not.
    (nn.Parameter(torch.ones(())) * one(inputs)).sum().backward()


def test_maps_are_averaged_to_the_grid_that_is_asked_for(tmp_path: Path) -> None:
    one = teacher(None, own_file(tmp_path / "m.safetensors"))
    inputs = pixels((128, 192))
    full = one.spatial_logits(inputs)
    assert full.shape == (2, 3, 4, 6)
    half = one.spatial_logits(inputs, (2, 3))
    expected = full.unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(half, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.spatial_logits(inputs, (4, 6)), full, rtol=0, atol=0)


def test_low_precision_inside_gives_float32(tmp_path: Path) -> None:
    one = teacher(None, own_file(tmp_path / "m.safetensors"))
    with torch.autocast("cpu", torch.bfloat16):
        assert one(pixels()).dtype == torch.float32
        assert one.spatial_logits(pixels()).dtype == torch.float32


def test_images_are_resized_to_the_size_the_teacher_works_at(tmp_path: Path) -> None:
    path = own_file(tmp_path / "m.safetensors", mean=HALF, std=HALF)
    one = teacher(None, path, image_size=(96, 64))
    assert one.grid == (3, 2)
    flat = torch.full((1, 3, 40, 50), 0.25)
    torch.testing.assert_close(one(flat), one(torch.full((1, 3, 96, 64), 0.25)))
    assert one.spatial_logits(pixels((50, 70))).shape == (2, 3, 3, 2)


def test_an_architecture_of_fixed_size_gets_its_size(tmp_path: Path) -> None:
    weights = plain_file(tmp_path / "w.pth", "test_vit", 4)
    one = teacher("test_vit", weights)
    assert one.image_size == (160, 160)
    assert one.spatial_logits(pixels((64, 48))).shape == (2, 4, 10, 10)
    # Asked for another size, a ViT adapts its position embedding.
    other = teacher("test_vit", weights, image_size=(64, 96))
    assert other.spatial_logits(pixels((64, 48))).shape == (2, 4, 4, 6)


def test_an_architecture_that_cannot_change_its_size_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = plain_file(tmp_path / "w.pth", "test_vit", 4)
    monkeypatch.delattr(timm.models.VisionTransformer, "set_input_size")
    with pytest.raises(ValueError, match="test_vit takes only 160x160 images, got the size 64x64"):
        teacher("test_vit", weights, image_size=(64, 64))


def test_weights_without_a_matching_classifier_are_refused(tmp_path: Path) -> None:
    """A teacher with a fresh head would teach noise."""
    five = plain_file(tmp_path / "five.pth", "test_resnet", 5)
    with pytest.raises(ValueError, match=r"teacher of 3 classes, but .*five\.pth has 5"):
        teacher("test_resnet", five, 3)
    state = create_model("test_resnet", num_classes=5).state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"does not fit test_resnet as a teacher: .*missing: fc"):
        teacher("test_resnet", tmp_path / "b.pth")
    own = own_file(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"teacher of 4 classes, but .*m\.safetensors has 3"):
        teacher(None, own, 4)
    card = ModelCard("wavevit_test", {"num_classes": 3}, class_names=NAMES, image_size=(64, 64))
    weights = {k: v for k, v in card.build().state_dict().items() if not k.startswith("head.")}
    save_model(tmp_path / "headless.safetensors", weights, card)
    with pytest.raises(ValueError, match=r"wavevit_test as a teacher: .*missing: head"):
        teacher(None, tmp_path / "headless.safetensors")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    own = own_file(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="is a wavevit_test, not a resnet50; leave the name out"):
        teacher("resnet50", own)
    with pytest.raises(ValueError, match="does not fit test_vit as a teacher"):
        teacher("test_vit", plain_file(tmp_path / "w.pth", "test_resnet", 5))
    with pytest.raises(ValueError, match="timm has no model named 'resnet5000'"):
        teacher("resnet5000", tmp_path / "w.pth")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    state = create_model("test_resnet", num_classes=3).state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="does not say which network it is for: name the teacher"):
        teacher(None, tmp_path / "plain.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        teacher(None, tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"expected best\.safetensors in the run directory"):
        teacher(None, tmp_path)
    with pytest.raises(ValueError, match="a teacher needs weights"):
        teacher("test_resnet", None)
    with pytest.raises(ValueError, match="not both"):
        teacher("test_resnet", tmp_path / "plain.safetensors", pretrained=True)
    with pytest.raises(ValueError, match="needs the model's name"):
        teacher(None, None, pretrained=True)


def test_pretrained_weights_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def create(name: str, **arguments: Any) -> nn.Module:
        asked.append((name, arguments))
        return create_model(name)

    monkeypatch.setattr("wavevit.models.teacher.create_model", create)
    assert teacher("test_resnet", None, pretrained=True).num_classes == 1000
    assert asked == [("test_resnet", {"pretrained": True})]
    with pytest.raises(ValueError, match="teacher of 10 classes, but test_resnet has 1000"):
        teacher("test_resnet", None, 10, pretrained=True)


def test_only_spatial_teachers_need_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = plain_file(tmp_path / "w.pth", "test_resnet", 4)
    pooled = timm.models.ResNet.forward_features
    monkeypatch.setattr(
        timm.models.ResNet, "forward_features", lambda *a: pooled(*a).mean(dim=(2, 3))
    )
    monkeypatch.setattr(timm.models.ResNet, "forward_head", lambda self, x: self.fc(x))
    with pytest.raises(ValueError, match="test_resnet cannot say what is where"):
        teacher("test_resnet", weights)
    one = teacher("test_resnet", weights, spatial=False)
    assert one.grid is None
    assert one(pixels()).shape == (2, 4)


def test_images_that_the_network_does_not_take_are_found_out_at_once(tmp_path: Path) -> None:
    path = own_file(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="H, W >= 32"):
        teacher(None, path, image_size=(16, 16))


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (["ant", "bee"], "only the teacher has cat"),
        (["ant", "bee", "dog"], "only the teacher has cat; only the data has dog"),
        (["bee", "ant", "cat"], "another order, class 0 is 'ant' for the teacher and 'bee' in"),
        (list("abcdefgh"), "only the data has a, b, c, d, e and 3 more"),
    ],
)
def test_other_classes_are_refused_by_name(
    names: list[str], difference: str, tmp_path: Path
) -> None:
    one = teacher(None, own_file(tmp_path / "m.safetensors"))
    one.check_classes(NAMES)
    with pytest.raises(ValueError, match=re.escape(difference)):
        one.check_classes(names)


def test_a_teacher_that_does_not_name_its_classes_must_have_as_many(tmp_path: Path) -> None:
    one = teacher("test_resnet", plain_file(tmp_path / "w.pth", "test_resnet", 3))
    one.check_classes(NAMES)
    with pytest.raises(ValueError, match="test_resnet has 3 classes and the data 2"):
        one.check_classes(NAMES[:2])

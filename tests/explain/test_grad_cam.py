"""Grad-CAM has its closed form on a linear network, and leaves every model as it was."""

import pytest
import timm
import torch
from torch import Tensor, nn

import wavevit
from wavevit import explain


class Linear(nn.Module):
    """A map of two channels, weighted by position for each class: gradients are the weights."""

    def __init__(self, position_weights: Tensor) -> None:
        super().__init__()
        self.feature_info = [{"num_chs": 2, "reduction": 2, "module": "features"}]
        self.features = nn.Conv2d(3, 2, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.dropout = nn.Dropout(0.5)
        self.position_weights = nn.Parameter(position_weights)  # (K, 2, h, w)

    def forward(self, x: Tensor) -> Tensor:
        features = self.dropout(self.norm(self.features(x).mul_(1)))
        return torch.einsum("bchw,kchw->bk", features, self.position_weights)


def linear(h: int = 3, w: int = 5, K: int = 4) -> Linear:
    torch.manual_seed(0)
    return Linear(torch.randn(K, 2, h, w))


def images(H: int, W: int, B: int = 2) -> Tensor:
    return torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(1))


def test_a_linear_network_has_a_closed_form() -> None:
    model, x, classes = linear(), images(6, 10), [3, 1]
    maps = model.features(x) / (1 + model.norm.eps) ** 0.5  # fresh BatchNorm in evaluation mode
    alphas = model.position_weights[classes].mean(dim=(2, 3), keepdim=True)
    expected = (maps * alphas).sum(dim=1).relu()
    for targets in (classes, torch.tensor(classes)):
        found = explain.grad_cam(model, x, targets, stage=0)
        torch.testing.assert_close(found, expected)
    assert found.max() > 0
    assert not found.requires_grad


def test_the_default_is_the_most_probable_class_and_a_function_may_choose() -> None:
    model, x = linear(), images(6, 10)
    best = model.eval()(x).argmax(dim=1)
    assert len(set(best.tolist())) == 2  # else one number would do
    expected = explain.grad_cam(model, x, best)
    torch.testing.assert_close(explain.grad_cam(model, x), expected)
    chosen = explain.grad_cam(model, x, lambda logits: logits.amax(dim=1))
    torch.testing.assert_close(chosen, expected)


def test_images_do_not_know_of_each_other() -> None:
    model = timm.create_model("wavevit_test", num_classes=5)
    x = images(70, 101)
    whole = explain.grad_cam(model, x, 2, stage=1)
    assert whole.shape == (2, 9, 13)
    for one, alone in zip(whole, x.split(1), strict=True):
        torch.testing.assert_close(explain.grad_cam(model, alone, 2, stage=1)[0], one)


@pytest.mark.parametrize("name", ["wavevit_test", "test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("frozen", [False, True])
def test_networks_of_timm_at_every_stage_come_back_as_they_were(name: str, frozen: bool) -> None:
    torch.manual_seed(0)
    size = timm.get_pretrained_cfg(name).input_size[1:] if name == "test_vit" else (64, 96)
    model = timm.create_model(name, num_classes=4).requires_grad_(not frozen).train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = images(*size)
    strides = [16] * 4 if name == "test_vit" else [4, 8, 16, 32]
    for stage, stride in enumerate(strides):
        found = explain.grad_cam(model, x, [1, 3], stage=stage)
        assert found.shape == (2, size[0] // stride, size[1] // stride)
        with torch.inference_mode():
            torch.testing.assert_close(explain.grad_cam(model, x, [1, 3], stage=stage), found)
            assert torch.is_inference_mode_enabled()
        with torch.no_grad():
            torch.testing.assert_close(explain.grad_cam(model, x, [1, 3], stage=stage), found)
            assert not torch.is_grad_enabled()
    with pytest.raises(ValueError, match="classes are 0 to 3"):
        explain.grad_cam(model, x, 4)
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad != frozen for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_a_vit_s_last_block_passes_on_its_class_token_alone() -> None:
    model = timm.create_model("test_vit", num_classes=4)
    with pytest.raises(ValueError, match="take an earlier stage"):
        explain.grad_cam(model, images(*model.default_cfg["input_size"][1:]), 0)


def test_the_class_of_a_segmenter_is_explained_where_it_is_found() -> None:
    torch.manual_seed(0)
    model = wavevit.create_segmenter("upernet", backbone="wavevit_test", num_classes=3)
    x = images(64, 96)
    found = model.eval()(x).argmax(dim=1)
    classes = found.flatten(1).mode(dim=1).values

    def score(logits: Tensor) -> Tensor:
        mine = logits[range(2), classes]
        return (mine * (found == classes[:, None, None])).sum(dim=(1, 2))

    expected = explain.grad_cam(model, x, score, stage=0)
    assert expected.shape == (2, 16, 24)
    torch.testing.assert_close(explain.grad_cam(model, x, stage=0), expected)
    absent = next(k for k in range(4) if k == 3 or not (found[0] == k).any())
    words = "classes are 0 to 2" if absent == 3 else f"class {absent} is nowhere in image 0"
    with pytest.raises(ValueError, match=words):
        explain.grad_cam(model, x, absent)


@pytest.mark.parametrize(
    "name",
    [
        "retinanet",
        "atss",
        pytest.param("mask_rcnn", marks=pytest.mark.slow),
        pytest.param("sparse_rcnn", marks=pytest.mark.slow),
    ],
)
def test_the_score_of_a_detector_s_object_is_explained(name: str) -> None:
    torch.manual_seed(0)
    model = wavevit.create_detector(name, backbone="wavevit_test", num_classes=2)
    for module in model.modules():
        if hasattr(module, "score_threshold"):
            module.score_threshold = 0.0
    x = images(70, 101)
    first = explain.grad_cam(model, x, stage=0)
    assert first.shape == (2, 18, 26)
    assert first.max() > 0
    torch.testing.assert_close(
        explain.grad_cam(model, x, lambda found: torch.stack([f["scores"][0] for f in found]), 0),
        first,
    )
    assert model.training
    with pytest.raises(ValueError, match="there is no object 5000"):
        explain.grad_cam(model, x, 5000)
    assert not model.eval()(list(x))[0]["scores"].requires_grad


def test_mistakes() -> None:
    model, x = linear(), images(6, 10)
    with pytest.raises(ValueError, match="has the stages 0 to 0 at strides 2; got stage 1"):
        explain.grad_cam(model, x, stage=1)
    with pytest.raises(ValueError, match="does not say what its stages are"):
        explain.grad_cam(nn.Flatten(), x)
    with pytest.raises(ValueError, match="one for each of 2 images"):
        explain.grad_cam(model, x, [1, 2, 3])
    with pytest.raises(ValueError, match="whole number"):
        explain.grad_cam(model, x, torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"expected scores \(2,\) of the function, got \(2, 4\)"):
        explain.grad_cam(model, x, lambda logits: logits)
    with torch.inference_mode():
        made_inside = linear()
    with pytest.raises(ValueError, match="build or load it outside"):
        explain.grad_cam(made_inside, x)

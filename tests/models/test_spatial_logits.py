"""The classifier at every location: right values, at the right place, for every kind of network."""

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import wavevit
from wavevit.models import spatial_logits as module
from wavevit.models.feature_layout import num_prefix_tokens
from wavevit.models.spatial_logits import spatial_logits

CLASSES = 7
_SWIN = {"img_size": (56, 112), "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
_DEIT = {"img_size": (32, 64), "depth": 1, "embed_dim": 32, "num_heads": 2}
_HIERA = {"img_size": (64, 96), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1), "q_pool": 1}

# Name, arguments, image, and the rows and columns of its map.
AVERAGING = [
    ("test_resnet", {}, (64, 96), (2, 3)),
    ("test_byobnet", {}, (64, 96), (2, 3)),
    ("test_efficientnet", {}, (64, 96), (2, 3)),
    ("test_nfnet", {}, (64, 96), (2, 3)),
    ("swin_tiny_patch4_window7_224", {**_SWIN, "window_size": 7}, (56, 112), (7, 14)),
    ("pvt_v2_b0", {}, (64, 96), (2, 3)),
    ("wavevit_test", {"global_pool": "avg"}, (64, 96), (2, 3)),
]
OTHERS = [
    ("test_convnext", {}, (64, 96), (2, 3)),
    ("test_mambaout", {}, (64, 96), (2, 3)),
    ("test_maxvit", {}, (160, 160), (5, 5)),
    ("test_vit", {"img_size": (32, 48)}, (32, 48), (2, 3)),
    ("test_vit3", {"img_size": (32, 48)}, (32, 48), (2, 3)),
    ("test_vit", {"dynamic_img_size": True}, (32, 48), (2, 3)),
    ("deit_tiny_distilled_patch16_224", _DEIT, (32, 64), (2, 4)),
    ("hiera_tiny_224", {**_HIERA, "mask_unit_size": (4, 4)}, (64, 96), (8, 12)),
    ("wavevit_test", {}, (64, 96), (2, 3)),
    ("wavevit_test", {"token_label": True}, (64, 96), (2, 3)),
]


def network(name: str, arguments: dict[str, Any]) -> nn.Module:
    assert wavevit.__version__  # the import registers the models
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **arguments).eval()
    classifier = model.get_classifier()
    for part in classifier if isinstance(classifier, tuple) else [classifier]:
        for parameter in part.parameters():
            nn.init.normal_(parameter)  # some start at zero
    return model


def images(size: tuple[int, int], seed: int = 1) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def _ids(cases: list[Any]) -> list[str]:
    return [f"{case[0]} {' '.join(map(str, case[1].values()))}".strip() for case in cases]


@pytest.mark.parametrize(("name", "arguments", "size", "grid"), AVERAGING, ids=_ids(AVERAGING))
def test_the_mean_over_locations_is_the_answer_of_an_averaging_network(
    name: str, arguments: dict[str, Any], size: tuple[int, int], grid: tuple[int, int]
) -> None:
    model = network(name, arguments)
    logits = spatial_logits(model, images(size))
    assert logits.shape == (2, CLASSES, *grid)
    with torch.no_grad():
        expected = model(images(size))
    assert logits.std(dim=(2, 3)).min() > 0  # locations differ
    # float32 sums in another order.
    torch.testing.assert_close(logits.mean(dim=(2, 3)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "arguments", "size", "grid"), OTHERS, ids=_ids(OTHERS))
def test_each_location_is_classified_alone(
    name: str, arguments: dict[str, Any], size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Shape, no gradient, nothing changed; and independent of what stands beside it."""
    model = network(name, arguments)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = spatial_logits(model, images(size))
    assert logits.shape == (2, CLASSES, *grid)
    assert logits.isfinite().all()
    assert not logits.requires_grad
    assert not any(part.training for part in model.modules())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    alone = spatial_logits(model, images(size)[1:])
    torch.testing.assert_close(logits[1:], alone, rtol=1e-4, atol=1e-4)


def test_maps_with_channels_last_are_not_taken_for_channels_first() -> None:
    """Even where all sizes are alike, so that the shape says nothing."""
    model = network("test_mambaout", {})
    features = torch.randn(2, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    model.forward_features = lambda _: features
    logits = spatial_logits(model, images((64, 64)))
    with torch.no_grad():
        expected = model.forward_head(features[:, 5:6, 9:10])
    torch.testing.assert_close(logits[:, :, 5, 9], expected, rtol=1e-4, atol=1e-4)


def test_a_swin_location_is_its_own_feature_times_the_classifier() -> None:
    name, arguments, size, _ = AVERAGING[4]
    model = network(name, arguments)
    logits = spatial_logits(model, images(size))
    with torch.no_grad():
        features = model.forward_features(images(size))  # (2, 7, 14, 32)
        for row, column in ((0, 0), (2, 11), (6, 5)):
            expected = features[:, row, column] @ model.head.fc.weight.T + model.head.fc.bias
            actual = logits[:, :, row, column]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_a_patch_token_is_classified_whatever_the_pooling(pool: str) -> None:
    model = network("test_vit", {"img_size": (32, 48), "global_pool": pool})
    logits = spatial_logits(model, images((32, 48)))
    with torch.no_grad():
        tokens = model.forward_features(images((32, 48)))[:, num_prefix_tokens(model) :]
        for position in range(6):
            token = tokens[:, position]
            if pool == "map":  # attention over one token
                token = model.attn_pool(token[:, None])
            expected = model.head(model.fc_norm(token))
            actual = logits[:, :, position // 3, position % 3]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_patch_stands_at_its_row_and_column(dynamic: bool) -> None:
    """Without blocks a token sees its own patch: what changes shows where it is."""
    arguments = {"dynamic_img_size": True} if dynamic else {"img_size": (32, 80)}
    model = network("test_vit", arguments)
    model.blocks = nn.Sequential()
    before, changed = images((32, 80)), images((32, 80))
    changed[:, :, 16:32, 48:64] += 1
    moved = (spatial_logits(model, changed) - spatial_logits(model, before)).abs().amax(dim=1)
    assert moved.shape == (2, 2, 5)
    assert [index.tolist() for index in moved[0].nonzero()] == [[1, 3]]


def test_tokens_kept_in_another_order_come_out_in_that_of_the_image() -> None:
    """Hiera sorts its tokens by windows of 2 x 2; attention there stays inside a window."""
    name, arguments, size, _ = OTHERS[7]
    model = network(name, arguments)
    before = images(size)
    for row, column, window in ((0, 0, (0, 0)), (20, 40, (2, 4)), (63, 95, (6, 10))):
        changed = before.clone()
        changed[:, :, row, column] += 3
        moved = (spatial_logits(model, changed) - spatial_logits(model, before)).abs().amax(dim=1)
        places = [tuple(index.tolist()) for index in (moved[0] > 1e-5).nonzero()]
        top, left = window
        assert places == [(top + r, left + c) for r in (0, 1) for c in (0, 1)]


def test_token_label_networks_answer_with_the_classifier_of_their_tokens() -> None:
    """Evaluation adds half the greatest token logit to that of the class token (spec 3)."""
    model = network("wavevit_test", {"token_label": True})
    logits = spatial_logits(model, images((64, 96)))
    with torch.no_grad():
        features = model.forward_features(images((64, 96)))
        of_class_token = model.head(model.forward_head(features, pre_logits=True))
        whole = model(images((64, 96)))
    expected = of_class_token + 0.5 * logits.amax(dim=(2, 3))
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)


def test_the_answers_of_two_classifiers_are_averaged() -> None:
    model = network("deit_tiny_distilled_patch16_224", _DEIT)
    logits = spatial_logits(model, images((32, 64)))
    with torch.no_grad():
        tokens = model.forward_features(images((32, 64)))[:, 2:]
        expected = ((model.head(tokens) + model.head_dist(tokens)) / 2).transpose(1, 2)
    torch.testing.assert_close(logits.flatten(2), expected, rtol=1e-4, atol=1e-4)


def test_a_head_sees_a_bounded_number_of_locations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("test_resnet", {})
    expected = spatial_logits(model, images((64, 96)))
    monkeypatch.setattr(module, "_LOCATIONS_AT_ONCE", 5)
    head, seen = model.forward_head, []

    def counting(features: Tensor) -> Tensor:
        seen.append(len(features))
        return head(features)

    model.forward_head = counting
    logits = spatial_logits(model, images((64, 96)))
    assert seen == [5, 5, 2]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


class _Pooled(nn.Module):
    num_classes = CLASSES

    def forward_features(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        return features


class _Pair(_Pooled):
    def forward_features(self, images: Tensor) -> Any:
        return [images, images]


class _ClassTokenOnly(_Pooled):
    num_prefix_tokens = 1

    def forward_features(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))[:, None]


class _OddTokens(_Pooled):
    def forward_features(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 11, 3)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_Pooled(), "_Pooled .* features have the shape (2, 3)"),
        (_Pair(), "_Pair .* features are a list"),
        (_ClassTokenOnly(), "_ClassTokenOnly .* nothing but class tokens"),
        (_OddTokens(), "_OddTokens .* 11 tokens are no grid in the proportions of 64x96 images"),
        (nn.Conv2d(3, 3, 1), "Conv2d .* has no forward_features()"),
    ],
)
def test_networks_without_a_map_are_refused_by_name(model: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(").replace(")", r"\)")) as error:
        spatial_logits(model.eval(), images((64, 96)))
    assert "cannot say what is where" in str(error.value)


def test_networks_without_a_classifier_are_refused() -> None:
    model = timm.create_model("test_resnet", num_classes=0).eval()
    with pytest.raises(ValueError, match=re.escape("test_resnet cannot say what is where")):
        spatial_logits(model, images((64, 96)))


def test_training_mode_is_refused() -> None:
    """Batch normalisation would mix the locations, and remember them."""
    with pytest.raises(ValueError, match=r"test_resnet in evaluation mode; call eval\(\)"):
        spatial_logits(network("test_resnet", {}).train(), images((64, 96)))

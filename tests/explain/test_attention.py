"""Attention maps are the weights that the blocks really use."""

import pytest
import timm
import torch
from torch import Tensor, nn

import wavevit
from wavevit import explain
from wavevit.explain.watching import outputs_of


def make(seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("wavevit_test", num_classes=5, **options)
    for parameter in model.parameters():  # fresh weights are so small that all weights are equal
        parameter.data.mul_(3)
    return model


def images(H: int = 70, W: int = 101, B: int = 2) -> Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(1))


def used_by(model: nn.Module, attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the block attended to (the input of its projection), and its values."""
    inputs: list[Tensor] = []
    handle = attention.proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    linear = attention.qkv if hasattr(attention, "qkv") else attention.kv
    with outputs_of(linear) as kept, torch.no_grad():
        model.eval()(x)
    handle.remove()
    C = attention.proj.out_features
    return inputs[0][..., :C], kept[0][0][..., -C:]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_times_values_are_what_the_block_attends_to(stage: int, fused: bool) -> None:
    model = wavevit.fuse(make()) if fused else make()
    x = images()
    attention = model.stages[stage].blocks[0].attn
    row, column = 1, 2
    weights = explain.attention_map(model, x, stage, 0, (row, column))
    attended, values = used_by(model, attention, x)
    heads = attention.num_heads
    assert weights.shape == (2, heads, *values.shape[1:3])
    torch.testing.assert_close(weights.sum(dim=(2, 3)), torch.ones(2, heads))
    assert weights.std() > 1e-4  # not uniform, or this would compare means only
    values = values.flatten(1, 2).unflatten(-1, (heads, -1))
    mixed = torch.einsum("bhn,bnhd->bhd", weights.flatten(2), values).flatten(1)
    torch.testing.assert_close(mixed, attended[:, row, column], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_the_class_token_s_weights_are_the_block_s_own_without_the_class_token(fused: bool) -> None:
    model = wavevit.fuse(make()) if fused else make()
    x = images()
    weights = explain.class_token_attention(model, x)
    block = model.class_attn
    assert weights.shape == (2, block.num_heads, 3, 4)
    torch.testing.assert_close(weights.sum(dim=(2, 3)), torch.ones(2, block.num_heads))
    with outputs_of(block.q) as kept, torch.no_grad():
        attended, values = used_by(model, block, x)
        q = kept[0][0]
        with outputs_of(block.kv) as kept_kv:
            model(x)
    k = kept_kv[0][0][..., : q.shape[-1]]
    q, k, values = (t.unflatten(-1, (block.num_heads, -1)) for t in (q, k, values))
    logits = torch.einsum("bhd,bnhd->bhn", q[:, 0], k) / q.shape[-1] ** 0.5
    own = logits.softmax(-1)[..., 0]  # of the class token to itself
    mixed = own[..., None] * values[:, 0] + (1 - own)[..., None] * torch.einsum(
        "bhn,bnhd->bhd", weights.flatten(2), values[:, 1:]
    )
    torch.testing.assert_close(mixed.flatten(1), attended[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["upernet", "gfl"])
def test_networks_that_contain_a_wave_vit(name: str) -> None:
    make_model = wavevit.create_segmenter if name == "upernet" else wavevit.create_detector
    model = make_model(name, backbone="wavevit_test", num_classes=3)
    weights = explain.attention_map(model, images().sigmoid(), 2, -1, (0, 0))
    torch.testing.assert_close(weights.sum(dim=(2, 3)), torch.ones(2, 3))


def test_the_model_comes_back_as_it_was() -> None:
    model = make().train()
    model.stages[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain.class_token_attention(model, images())
    explain.attention_map(model, images(), 0, 0, (0, 0))
    with pytest.raises(ValueError, match="9 x 9"):
        explain.attention_map(model, images(33, 35), 0, 0, (9, 0))
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks for module in model.modules())
    for name, value in model.state_dict().items():  # BatchNorm's statistics too
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="with class attention; this model has none"):
        explain.class_token_attention(make(global_pool="avg"), images())
    with pytest.raises(ValueError, match="expected a Wave-ViT"):
        explain.attention_map(timm.create_model("test_resnet"), images(), 0, 0, (0, 0))
    with pytest.raises(ValueError, match="stages are 0 to 3, got 4"):
        explain.attention_map(make(), images(), 4, 0, (0, 0))
    with pytest.raises(ValueError, match="blocks of stage 1 are 0 to 0, got 1"):
        explain.attention_map(make(), images(), 1, 1, (0, 0))
    with pytest.raises(ValueError, match=r"one image is images\[None\]"):
        explain.class_token_attention(make(), images()[0])

"""Known answers for what operations move and compute, and for whole networks."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wavevit
from wavevit.models.wave_vit import VARIANTS
from wavevit.profiling.counting import Count, count
from wavevit.profiling.tracing import ATTENTION, DEPTHWISE, SOFTMAX

C, H, W = 4, 6, 10
PIXELS = H * W


class Function(nn.Module):
    """A function of images as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image)


def moved(function: Callable[[Tensor], Tensor] | nn.Module, **options: bool) -> float:
    """How often the memory of an image (C, H, W) is read or written."""
    model = function if isinstance(function, nn.Module) else Function(function)
    return count(model, (C, H, W), dtype_bytes=1, **options).activation_bytes / (C * PIXELS)


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def test_a_convolution_reads_its_input_writes_its_output_and_multiplies() -> None:
    found = count(nn.Conv2d(C, 7, 3, padding=1), (C, H, W), dtype_bytes=2)
    assert found.flops == 2 * 9 * C * 7 * PIXELS
    assert found.activation_bytes == 2 * (C + 7) * PIXELS
    assert found.parameter_bytes == 2 * (9 * C * 7 + 7)


def test_a_backward_pass_costs_twice_its_forward_pass_also_in_groups() -> None:
    layers = [nn.Conv2d(C, C, 3, padding=1, groups=C) for _ in range(2)]
    once = count(nn.Sequential(*layers), (C, H, W)).flops
    assert once == 2 * 2 * 9 * C * PIXELS
    # The first layer's input needs no gradient.
    assert count(nn.Sequential(*layers), (C, H, W), training=True).flops == once * 5 / 2


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (lambda x: x.transpose(2, 3).unsqueeze(1)[..., 1:].squeeze(1), 0),
        (lambda x: x + 1, 2),
        (lambda x: x.expand(2, *x.shape) + 1, 3),
        (lambda x: x + x, 2),
        (lambda x: (x + 1).relu_(), 4),
        (lambda x: torch.empty_like(x).copy_(x), 2),
        (lambda x: x.transpose(2, 3).contiguous(), 2),
        (lambda x: torch.cat([x, x], 1), 3),
        (lambda x: torch.add(x[:, :, ::2], x[:, :, 1::2], out=torch.empty(2, C, H // 2, W)), 1.5),
    ],
    ids=["views", "new", "broadcast", "twice", "in place", "copy", "transposed", "cat", "halves"],
)
def test_bytes_of_an_operation(function: Callable[[Tensor], Tensor], times: float) -> None:
    assert moved(function) == times


def test_neighbours_hand_over_in_registers_only_when_fused() -> None:
    depthwise = nn.Sequential(nn.Conv2d(C, C, 3, padding=1, groups=C), nn.GELU())
    assert (moved(depthwise), moved(depthwise, fused=True)) == (4, 2)
    # Without a rule for them, nothing changes.
    dense = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.GELU())
    assert (moved(dense), moved(dense, fused=True)) == (4, 4)


def test_a_fused_residual_is_still_written_for_its_second_reader() -> None:
    class Block(Function):
        def __init__(self) -> None:
            super().__init__(self.block)
            self.norm = nn.LayerNorm(W)

        def block(self, x: Tensor) -> Tensor:
            x = x + x.roll(1, 0)
            return x + F.softmax(self.norm(x), dim=1)

    saved = moved(Block()) - moved(Block(), fused=True)
    assert saved == 1  # LayerNorm need not read the sum


def test_what_reads_a_later_result_cannot_join_an_earlier_kernel() -> None:
    def block(x: Tensor) -> Tensor:
        early = x + 1
        return early + torch.softmax(early, dim=1)

    assert moved(block, fused=True) == moved(block)


class SelfAttention(nn.Module):
    def __init__(self, spelled_out: bool, masked: bool = False) -> None:
        super().__init__()
        self.spelled_out = spelled_out
        self.mask = nn.Parameter(torch.zeros(H, H)) if masked else None
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        q = image * self.weight
        if self.spelled_out:
            return (q @ q.transpose(-2, -1)).softmax(-1) @ q
        return F.scaled_dot_product_attention(q, q, q, attn_mask=self.mask)


def test_attention_is_one_kernel_whose_scores_never_reach_memory() -> None:
    flops = 2 * 2 * C * H * H * W  # (C heads, H tokens, W channels)
    fused = count(SelfAttention(spelled_out=False), (C, H, W), dtype_bytes=1)
    plain = count(SelfAttention(spelled_out=True), (C, H, W), dtype_bytes=1)
    assert fused.flops == plain.flops == flops
    assert set(fused.flops_by_group) == {ATTENTION}
    # The product with a scalar, then q (k and v too) and the result, with one number per row.
    assert fused.activation_bytes == C * H * W * 4 + C * H
    assert plain.activation_bytes == C * H * W * 5 + C * H * H * 4
    assert SOFTMAX in plain.by_group


@pytest.mark.parametrize("masked", [False, True])
def test_the_backward_pass_of_attention_computes_the_scores_again(masked: bool) -> None:
    model = SelfAttention(spelled_out=False, masked=masked)
    forward = count(model, (C, H, W)).flops
    assert count(model, (C, H, W), training=True).flops == forward * (2 + 5) / 2


def test_the_network_is_left_as_it_was() -> None:
    model = timm.create_model("wavevit_test").train()
    model.stages[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    count(model, (3, 64, 64), training=True)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_device_dtype_and_form_of_the_size_do_not_matter() -> None:
    expected = count(timm.create_model("wavevit_test"), (3, 64, 96))
    assert count(timm.create_model("wavevit_test").bfloat16(), (3, 64, 96)) == expected
    assert count(on_meta("wavevit_test"), torch.empty(8, 3, 64, 96)) == expected


def test_checkpointing_computes_the_forward_pass_again() -> None:
    model = on_meta("wavevit_test")
    forward, plain = (attention_flops(model, training) for training in (False, True))
    model.set_grad_checkpointing()
    # Only class attention, outside the blocks, is not computed again.
    assert 0.9 * forward < attention_flops(model, training=True) - plain < forward


def attention_flops(model: nn.Module, training: bool) -> float:
    found = count(model, (3, 64, 64), training=training)
    return found.flops * found.flops_by_group[ATTENTION]


def test_wavevit_s_is_what_the_paper_says() -> None:
    found = count(on_meta("wavevit_s", token_label=True), (3, 224, 224))
    assert found.flops / 2e9 == pytest.approx(4.62, abs=0.005)
    assert found.parameter_bytes == pytest.approx(2 * 22_690_176, rel=2e-3)


def test_bytes_of_wavevit_s_are_those_counted_by_hand() -> None:
    found = count(wavevit.fuse(timm.create_model("wavevit_s").eval()), (3, 224, 224))
    assert found.activation_bytes / 1e6 == pytest.approx(209, abs=3)
    # fc1, depthwise, GELU and fc2 read and write tokens twice and the hidden ones six times.
    dims, depths = VARIANTS["wavevit_s"]["embed_dims"], VARIANTS["wavevit_s"]["depths"]
    feed_forward = sum(
        2 * depth * (56 >> i) ** 2 * dim * (2 + 6 * ratio)
        for i, (dim, depth, ratio) in enumerate(zip(dims, depths, (8, 8, 4, 4), strict=True))
    )
    head = 2 * 448 * (2 + 4 * 4)  # the class token's own
    by_name = found.share("mlp") * found.activation_bytes
    assert by_name == pytest.approx(feed_forward + head)
    assert by_name / found.activation_bytes == pytest.approx(0.59, abs=0.01)


def total(shares: Count) -> list[float]:
    return [sum(x.values()) for x in (shares.by_group, shares.flops_by_group, shares.by_module)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["wavevit_test", "test_convnext", "test_vit"])
def test_shares_add_up_and_fusing_only_saves(name: str, training: bool) -> None:
    model = on_meta(name)
    size = model.default_cfg["input_size"]
    each = count(model, size, training=training)
    fused = count(model, size, training=training, fused=True)
    assert total(each) == pytest.approx([1, 1, 1])
    assert total(fused) == pytest.approx([1, 1, 1])
    assert fused.flops == each.flops > 0
    assert 0.3 * each.activation_bytes < fused.activation_bytes <= each.activation_bytes
    if name != "test_vit":
        assert DEPTHWISE in each.by_group


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"expected the size \(C, H, W\) of an image, got \(3, 8\)"
    ):
        count(nn.Identity(), (3, 8))
    model = on_meta("wavevit_test", token_label=True)
    with pytest.raises(ValueError, match=r"depends on the values of a tensor .*training=False"):
        count(model, (3, 64, 64), training=True)

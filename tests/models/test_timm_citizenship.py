"""What timm asks of every model in its registry, asked of every one of ours."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor

import wavevit
from wavevit.models.wave_vit import WaveVit
from wavevit.ops.triton_support import kernels_enabled, use_kernels

ALL = timm.list_models("wavevit_*")
SMALL = "wavevit_test"


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(name: str = SMALL, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **arguments)


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_registry_holds_the_variants_of_the_paper_and_ours() -> None:
    assert {"wavevit_s", "wavevit_b", "wavevit_l", "wavevit_nano"} <= set(ALL)


@pytest.mark.parametrize(
    ("name", "with_token_labels", "without"),
    [
        ("wavevit_s", 22_690_176, 22_241_176),
        ("wavevit_b", 33_516_128, 33_003_128),
        ("wavevit_l", 57_474_504, 56_961_504),
    ],
)
def test_parameter_counts_are_those_of_the_paper(
    name: str, with_token_labels: int, without: int
) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name, token_label=True)
    assert count_parameters(model) == with_token_labels
    assert count_parameters(model) - count_parameters(model.aux_head) == without


def test_average_pooling_gives_the_19_8_million_of_the_papers_ablation() -> None:
    with torch.device("meta"):
        model = timm.create_model("wavevit_s", global_pool="avg")
    assert round(count_parameters(model) / 1e6, 1) == 19.8


def test_nano_has_3_to_4_million_parameters_and_under_0_7_gmac() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = build("wavevit_nano").eval()
    assert 3e6 < count_parameters(model) < 4e6
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(images(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 < 0.7e9


@pytest.mark.parametrize("name", ALL)
def test_default_config_names_the_layers_and_output_sizes(name: str) -> None:
    model = build(name).eval()
    config = model.default_cfg
    assert config["crop_pct"] == 0.96
    assert config["interpolation"] == "bicubic"
    assert config["mean"] == (0.485, 0.456, 0.406)
    assert config["std"] == (0.229, 0.224, 0.225)
    state = model.state_dict()
    assert config["classifier"] + ".weight" in state
    assert config["first_conv"] + ".weight" in state
    with torch.inference_mode():
        features = model.forward_features(images(1, *config["input_size"]))
        assert features.shape == (1, model.num_features, *config["pool_size"])
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (1, model.head_hidden_size)


def test_without_a_classifier_come_the_pooled_features_and_without_pooling_the_map() -> None:
    model = build().eval()
    x = images(1, 3, 64, 64)
    with torch.inference_mode():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), pooled)
        model.reset_classifier(0, "")
        assert model(x).shape == features.shape
        unpooled = build(num_classes=0, global_pool="").eval()
        assert unpooled(x).shape == features.shape


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {"token_label": True}) for name in ALL),  # which has every layer there is
        (SMALL, {}),
        (SMALL, {"global_pool": "avg"}),
    ],
)
def test_every_parameter_gets_a_gradient(name: str, arguments: dict[str, Any]) -> None:
    model = build(name, num_classes=42, **arguments).train()
    output = model(images(2, 3, 64, 64))
    if isinstance(output, tuple):
        logits, token_logits, box = output
        assert token_logits.shape == (2, 4, 42)
        assert len(box) == 4
        loss = logits.mean() + token_logits.mean()
    else:
        assert output.shape == (2, 42)
        loss = output.square().mean()
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ALL)
def test_features_only_gives_maps_at_strides_4_to_32(name: str) -> None:
    model = build(name, features_only=True).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    with torch.inference_mode():
        maps = model(images(2, 3, 96, 64))
    for channels, stride, features in zip(
        model.feature_info.channels(), model.feature_info.reduction(), maps, strict=True
    ):
        assert features.shape == (2, channels, 96 // stride, 64 // stride)


@pytest.mark.parametrize("indices", [(0,), (3,), (1, 3), (0, 2), (-1,), (2, 3)])
@pytest.mark.parametrize("kind", ["list", "getter", "hook"])
def test_features_only_takes_any_out_indices_and_equals_forward_intermediates(
    indices: tuple[int, ...], kind: str
) -> None:
    x = images(2, 3, 64, 96)
    whole = build().eval()
    model = build(features_only=True, out_indices=indices, feature_cls=kind).eval()
    model.load_state_dict(
        {
            (n.replace("stages.", "stages_", 1) if kind == "list" else f"model.{n}"): v
            for n, v in whole.state_dict().items()
            if (n.replace("stages.", "stages_", 1) if kind == "list" else f"model.{n}")
            in model.state_dict()
        },
        strict=False,
    )
    with torch.inference_mode():
        maps = model(x)
        expected = whole.forward_intermediates(x, [i % 4 for i in indices], intermediates_only=True)
    assert len(maps) == len(indices)
    for features, known in zip(maps, expected, strict=True):
        torch.testing.assert_close(features, known)


def test_forward_intermediates_ends_in_forward_features_and_stops_early() -> None:
    model = build().eval()
    x = images(1, 3, 64, 64)
    with torch.inference_mode():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        assert len(maps) == 4
        assert len(model.forward_intermediates(x, 2, intermediates_only=True)) == 2
        first = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(first[0], maps[0])
    with pytest.raises(ValueError, match='output_fmt must be "NCHW"'):
        model.forward_intermediates(x, output_fmt="NLC")


def test_pruning_intermediate_layers_leaves_the_maps_that_were_asked_for() -> None:
    model = build().eval()
    x = images(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model.forward_intermediates(x, [1], intermediates_only=True)
        model.prune_intermediate_layers([1])
        assert len(model.stages) == 2
        torch.testing.assert_close(
            model.forward_intermediates(x, [1], intermediates_only=True), expected
        )


def test_reset_classifier_changes_classes_and_pooling_and_keeps_the_rest() -> None:
    model = build(num_classes=10)
    backbone = {n: p.clone() for n, p in model.stages.named_parameters()}
    model.reset_classifier(7)
    assert model.get_classifier().weight.shape == (7, 32)
    assert model(images(2, 3, 64, 64)).shape == (2, 7)
    model.reset_classifier(5, "avg")
    assert model.class_attn is None
    assert model(images(2, 3, 64, 64)).shape == (2, 5)
    model.reset_classifier(5, "token")
    assert model.class_attn is not None
    assert model(images(2, 3, 64, 64)).shape == (2, 5)
    for name, parameter in model.stages.named_parameters():
        assert torch.equal(parameter, backbone[name])


def test_reset_classifier_of_a_half_precision_model_stays_in_its_dtype() -> None:
    model = build(global_pool="avg").to(torch.bfloat16)
    model.reset_classifier(3, "token")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_token_labels_add_half_of_the_largest_token_logits_in_evaluation() -> None:
    model = build(token_label=True, num_classes=10).eval()
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        features = model.forward_features(x)
        cls_logits = model.head(model.forward_head(features, pre_logits=True))
        tokens = model.norm(features).flatten(2).transpose(1, 2)
        expected = cls_logits + 0.5 * model.aux_head(tokens).amax(1)
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"global_pool": "max"}, 'global_pool must be "token", "avg" or "", got \'max\''),
        ({"global_pool": ""}, "use it with num_classes=0"),
    ],
)
def test_unusable_pooling_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(**arguments)


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 4, 64, 64), (3, 64, 64)])
def test_an_image_the_network_cannot_take_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\) with H, W >= 32, got"):
        build()(images(*shape))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (50, 64), (71, 36), (97, 129)])
def test_any_size_from_32_gives_maps_of_rounded_up_sizes(size: tuple[int, int]) -> None:
    model = build().eval()
    with torch.inference_mode():
        maps = model.forward_intermediates(images(1, 3, *size), intermediates_only=True)
        assert model(images(1, 3, *size)).isfinite().all()
    for stride, features in zip((4, 8, 16, 32), maps, strict=True):
        assert features.shape[2:] == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))


def test_memory_format_of_the_image_does_not_matter() -> None:
    model = build("wavevit_nano").eval()
    x = images(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(x), model(x.clone(memory_format=torch.channels_last)))


@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans(in_chans: int) -> None:
    model = build(in_chans=in_chans)
    assert model(images(2, in_chans, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("arguments", [{}, {"token_label": True}])
def test_gradient_checkpointing_changes_nothing(arguments: dict[str, Any]) -> None:
    """Not even BatchNorm's running statistics, which a recomputation would update again."""
    states, gradients = [], []
    for enable in (False, True):
        model = build(drop_path_rate=0.3, **arguments).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        output = model(images(2, 3, 64, 64))
        loss = output[0].square().mean() if isinstance(output, tuple) else output.square().mean()
        loss.backward()
        states.append(model.state_dict())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_gradient_checkpointing_of_features_only_changes_nothing() -> None:
    states = []
    for enable in (False, True):
        model = build(features_only=True).train()
        model.set_grad_checkpointing(enable)
        sum(features.square().mean() for features in model(images(2, 3, 64, 64))).backward()
        states.append((model.state_dict(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_weight_decay_spares_norms_and_biases() -> None:
    model = build()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0) == (parameter.ndim <= 1)


def test_layer_decay_falls_from_head_to_stem() -> None:
    model = build("wavevit_nano")
    groups = param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=())
    names = {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    order = [
        "stages.0.patch_embed.conv.0.weight",
        "stages.0.blocks.0.attn.q.weight",
        "stages.0.blocks.1.attn.q.weight",
        "stages.1.blocks.0.attn.q.weight",
        "stages.3.blocks.1.attn.q.weight",
        "class_attn.q.weight",
        "head.weight",
    ]
    values = [scales[name] for name in order]
    assert values == sorted(values)
    assert values[0] < values[1] < values[2] < values[3] < values[4]
    assert scales["stages.1.patch_embed.proj.weight"] == scales["stages.1.blocks.0.attn.q.weight"]
    assert scales["head.weight"] == 1.0


def test_drop_path_rises_linearly_from_zero() -> None:
    model = build("wavevit_nano", drop_path_rate=0.7)
    rates = [
        getattr(block.drop_path, "drop_prob", 0.0)
        for stage in model.stages
        for block in stage.blocks
    ]
    np.testing.assert_allclose(rates, np.linspace(0, 0.7, 8), atol=1e-12)


def test_initialisation_is_the_official_one() -> None:
    model = build("wavevit_s")
    block = model.stages[2].blocks[0]
    assert block.attn.q.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.q.bias.abs().max() == 0
    conv = model.stages[1].patch_embed.proj.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.05)
    depthwise = block.mlp.dwconv.weight
    assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)


def test_fused_form_has_no_batch_norm_and_equals_the_model_in_fp64() -> None:
    model = build("wavevit_nano", token_label=True).double()
    model.train()
    for step in range(3):  # running statistics and affine parts that are not trivial
        model(images(4, 3, 64, 64, seed=step).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=torch.float64))
    model.eval()
    fused = wavevit.fuse(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert fused.stages[2].blocks[0].attn.qkv.out_features == 3 * 160  # one product, not two
    x = images(2, 3, 75, 50).double()
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            timm.utils.reparameterize_model(model).eval()(x), model(x), rtol=1e-10, atol=1e-10
        )
        features = build("wavevit_nano", features_only=True).double().eval()
        torch.testing.assert_close(wavevit.fuse(features)(x), features(x), rtol=1e-10, atol=1e-10)


def test_synchronised_batch_norms_are_folded_too() -> None:
    model = timm.create_model("wavevit_test", num_classes=7)
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    fused = wavevit.fuse(model)
    assert not [m for m in fused.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_pure_low_precision_stay_near_fp32(dtype: torch.dtype) -> None:
    model = build("wavevit_nano").eval()
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", dtype):
            mixed = model(x)
        pure = model.to(dtype)(x.to(dtype))
    for output in (mixed, pure):
        assert output.dtype == dtype
        # bf16 has 8 bits: 16 blocks add up to a few per cent of the largest logit.
        assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_pure_bf16_trains() -> None:
    model = build("wavevit_nano").to(torch.bfloat16).train()
    model(images(2, 3, 64, 64).bfloat16()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_compiles_to_one_graph_for_any_number_of_images_and_equals_eager() -> None:
    model = build().eval()
    torch.compiler.reset()
    # Tracing is what can break; generating machine code would only take minutes more.
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    first, second = images(2, 3, 96, 70), images(3, 3, 96, 70)
    torch._dynamo.mark_dynamic(first, 0)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(first), model(first), rtol=1e-4, atol=1e-4)
        with torch.compiler.set_stance("fail_on_recompile"):
            torch.testing.assert_close(compiled(second), model(second), rtol=1e-4, atol=1e-4)


def test_exports_with_dynamic_batch_and_size() -> None:
    model = build().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own exporter
        program = torch.export.export(
            model,
            (images(2, 3, 64, 96),),
            dynamic_shapes=(
                {
                    0: torch.export.Dim.DYNAMIC,
                    2: torch.export.Dim.DYNAMIC,
                    3: torch.export.Dim.DYNAMIC,
                },
            ),
            strict=False,  # the default from torch 2.7
        )
    exported = program.module()
    for shape in ((2, 3, 64, 96), (3, 3, 96, 64), (1, 3, 75, 130)):
        x = images(*shape)
        with torch.inference_mode():
            torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)


def test_copies_and_pickles(tmp_path: Any) -> None:
    import copy
    import pickle

    model = build().eval()
    x = images(1, 3, 64, 64)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin, WaveVit)
        torch.testing.assert_close(twin(x), model(x))


@pytest.mark.parametrize("max_bytes", [1, 3 * 16 * 16 * 64 * 8, 10**9])
def test_slices_of_the_feed_forward_network_change_nothing(max_bytes: int) -> None:
    model = build("wavevit_test").double()
    x = images(7, 3, 64, 64).double()
    seen = []
    mlp = model.stages[0].blocks[0].mlp
    mlp.fc1.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    expected = model(x)
    expected_gradient = torch.autograd.grad(expected.sum(), mlp.dwconv.weight)[0]
    model.set_max_hidden_bytes(max_bytes)
    sliced = model(x)
    assert seen[1:] == {1: [1] * 7, 10**9: [7]}.get(max_bytes, [3, 3, 1])
    torch.testing.assert_close(sliced, expected, rtol=1e-10, atol=1e-12)
    gradient = torch.autograd.grad(sliced.sum(), mlp.dwconv.weight)[0]
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)
    model.set_max_hidden_bytes(None)
    model(x)
    assert seen[-1] == 7
    with pytest.raises(ValueError, match="positive number of bytes or None, got 0"):
        model.set_max_hidden_bytes(0)
    features = build("wavevit_test", features_only=True)
    features.set_max_hidden_bytes(1)
    assert {m.max_hidden_bytes for m in features.modules() if hasattr(m, "fc1")} == {1}


def test_what_is_computed_again_takes_the_kernels_of_the_first_time() -> None:
    model = build("wavevit_test")
    model.set_grad_checkpointing()
    seen = []
    fc1 = model.stages[0].blocks[0].mlp.fc1
    fc1.register_forward_hook(lambda *_: seen.append(kernels_enabled()))
    with use_kernels(False):
        loss = model(images(2, 3, 32, 32)).sum()
    loss.backward()
    assert seen == [False, False]
    assert kernels_enabled()

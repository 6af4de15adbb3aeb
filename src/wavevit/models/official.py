"""Names of the official checkpoints (spec section 3.2) and what our networks accept on loading."""

import logging
import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

logger = logging.getLogger(__name__)

StateDict = MutableMapping[str, Any]

# First match wins; the official name on the left. Names that match nothing are the same in both.
_RENAMES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"^patch_embed(\d)\."), lambda m: f"stages.{int(m[1]) - 1}.patch_embed."),
    (re.compile(r"^block(\d)\.(\d+)\."), lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (re.compile(r"^norm([123])\."), lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (re.compile(r"^norm4\."), "norm."),
    (re.compile(r"^post_network\.0\.attn\."), "class_attn."),
    (re.compile(r"^post_network\.0\."), "class_attn."),
]
_PART_RENAMES = [
    (".attn.reduce.0.", ".attn.reduce."),
    (".attn.reduce.1.", ".attn.reduce_norm."),
    (".attn.filter.0.", ".attn.filter."),
    (".attn.filter.1.", ".attn.filter_norm."),
    (".attn.kv.0.", ".attn.kv_norm."),
    (".attn.kv.1.", ".attn.kv."),
    (".mlp.dwconv.dwconv.", ".mlp.dwconv."),
]

# Haar filters as in the official buffers: rows of [[a, b], [c, d]], see spec section 2.
_HAAR = {
    "w_ll": [[0.5, 0.5], [0.5, 0.5]],
    "w_lh": [[0.5, 0.5], [-0.5, -0.5]],
    "w_hl": [[0.5, -0.5], [0.5, -0.5]],
    "w_hh": [[0.5, -0.5], [-0.5, 0.5]],
}
_FILTER_LEAF = re.compile(r"\.attn\.(?:dwt\.(w_ll|w_lh|w_hl|w_hh)|idwt\.(filters))$")

HEADS = ("head.", "aux_head.")
OFFICIAL_KEY = "patch_embed1.proj.weight"


def our_name(name: str) -> str | None:
    """Our name of an official state-dict entry; None for the wavelet buffers, which we compute.

    Args:
        name: Official name without any prefix.
    """
    if _FILTER_LEAF.search(name):
        return None
    for pattern, replacement in _RENAMES:
        renamed, count = pattern.subn(replacement, name)
        if count:
            name = renamed
            break
    for official, ours in _PART_RENAMES:
        name = name.replace(official, ours)
    return name


def our_shape(name: str, value: Tensor) -> Tensor:
    """The entry as our layer holds it: the 1x1 ``reduce`` convolution is a matrix here.

    Args:
        name: Our name.
        value: The entry.
    """
    if name.endswith(".attn.reduce.weight") and value.ndim == 4:
        return value.flatten(1)
    return value


def check_haar(name: str, value: Tensor) -> None:
    """Raises when an official wavelet buffer holds anything but the Haar filters.

    Args:
        name: Official name.
        value: The buffer.

    Raises:
        ValueError: Other values: the weights were trained with another transform.
    """
    match = _FILTER_LEAF.search(name)
    if match is None:
        return
    expected = torch.tensor(_HAAR[match[1]] if match[1] else list(_HAAR.values()))
    found = value.detach().float().cpu()
    if found.numel() != expected.numel() or not torch.equal(
        found.reshape(expected.shape), expected
    ):
        raise ValueError(
            f"{name} should hold the Haar filters (+-0.5), but it does not: these weights were "
            "trained with another wavelet, which this network cannot represent"
        )


def unwrap(checkpoint: Any) -> StateDict:
    """The names and tensors of a checkpoint, out of the wrappings that training scripts use.

    Takes ``state_dict``, ``model``, ``model.state_dict`` and EMA copies of them (preferred, as in
    timm), and strips the prefixes of DDP and ``torch.compile``.

    Args:
        checkpoint: What `torch.load` or safetensors returned.

    Raises:
        ValueError: No tensors with names are found.
    """
    state = checkpoint
    while isinstance(state, dict):
        for key in (
            "ema",
            "state_dict_ema",
            "model_ema",
            "state_dict",
            "model.state_dict",
            "model",
        ):
            if isinstance(state.get(key), dict):
                state = state[key]
                break
        else:
            break
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        found = (
            f"the keys {', '.join(map(str, list(checkpoint)[:5]))}"
            if isinstance(checkpoint, dict)
            else f"a {type(checkpoint).__name__}"
        )
        raise ValueError(
            f"expected names and tensors, plain or under 'state_dict' or 'model', got {found}"
        )
    return {_strip(str(name)): v for name, v in state.items() if isinstance(v, Tensor)}


def _strip(name: str) -> str:
    while name.startswith(("module.", "_orig_mod.")):
        name = name.split(".", 1)[1]
    return name


def rename(state: StateDict) -> dict[str, Tensor]:
    """Our names and shapes of an official state dict; one with our names passes unchanged.

    Args:
        state: Official or our names, without prefix.

    Raises:
        ValueError: A wavelet buffer does not hold the Haar filters.
    """
    if OFFICIAL_KEY not in state:
        return dict(state)
    renamed = {}
    for name, value in state.items():
        check_haar(name, value)
        ours = our_name(name)
        if ours is not None:
            renamed[ours] = our_shape(ours, value)
    return renamed


def adapt(model: nn.Module, state: StateDict) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint's entries under the names the network uses, and what was left out.

    Only entries that the network has no use for are left out: the head when its class count
    differs, and what lies behind the last map of a ``features_only`` network. Everything else
    stays, so that loading reports it.

    Args:
        model: The network, not changed.
        state: Official or our names, without prefix.

    Returns:
        The entries to load, and the names of those left out.

    Raises:
        ValueError: A wavelet buffer does not hold the Haar filters.
    """
    renamed = rename(state)
    expected = model.state_dict()
    _match_image_channels(renamed, expected)
    if "stages_0.patch_embed.proj.weight" in expected:
        renamed = {re.sub(r"^stages\.(\d+)\.", r"stages_\1.", k): v for k, v in renamed.items()}
        last_stage = max(int(m[1]) for k in expected if (m := re.match(r"stages_(\d+)\.", k)))
        behind = ("class_attn.", *HEADS) + (() if "norm.weight" in expected else ("norm.",))
        behind += tuple(f"stages_{i}." for i in range(last_stage + 1, 4))
        dropped = [name for name in renamed if name.startswith(behind)]
    else:
        dropped = _unusable_head(model, renamed)
    return {name: v for name, v in renamed.items() if name not in set(dropped)}, dropped


def _match_image_channels(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Weights for RGB serve another number of channels, summed or repeated as timm does."""
    for name in ("stages.0.patch_embed.conv.0.weight", "stages_0.patch_embed.conv.0.weight"):
        given = state.get("stages.0.patch_embed.conv.0.weight")
        if name in expected and given is not None and given.ndim == 4:
            in_chans = expected[name].shape[1]
            if given.shape[1] == 3 and in_chans != 3:
                logger.warning("the checkpoint takes RGB: adapted to %d channels", in_chans)
                state["stages.0.patch_embed.conv.0.weight"] = adapt_input_conv(in_chans, given)


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifier's entries in the network's state dict.

    Args:
        model: A Wave-ViT or another network of timm.
    """
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return (*(f"{name}." for name in names), "aux_head.")


def _unusable_head(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    heads = head_prefixes(model)
    num_classes = getattr(model, "num_classes", None)
    weight = state.get(f"{heads[0]}weight")
    if weight is None or num_classes is None or weight.shape[:1] == (num_classes,):
        return []
    if getattr(model, "class_attn", None) is None:
        heads = (*heads, "class_attn.")  # the pooling head goes with the classifier
    dropped = [name for name in state if name.startswith(heads)]
    logger.warning(
        "the checkpoint has %d classes and the network %d: dropped %s",
        weight.shape[0] if weight.ndim else 1,
        num_classes,
        ", ".join(dropped),
    )
    return dropped


def adapt_before_loading(model: nn.Module, state_dict: StateDict, prefix: str, *_: object) -> None:
    """Hook before ``load_state_dict``: official names and other class counts load directly.

    Args:
        model: A `WaveVit` or its ``features_only`` form.
        state_dict: Changed in place.
        prefix: The network's own prefix in ``state_dict``.

    Raises:
        ValueError: A wavelet buffer does not hold the Haar filters.
    """
    if not prefix and any(isinstance(value, dict) for value in state_dict.values()):
        inner = unwrap(dict(state_dict))
        state_dict.clear()
        state_dict.update(inner)
    own = {name.removeprefix(prefix): name for name in state_dict if name.startswith(prefix)}
    state, dropped = adapt(model, {name: state_dict[full] for name, full in own.items()})
    for full in own.values():
        del state_dict[full]
    if dropped:
        # The network's fresh head stands in, so that strict loading still checks all the rest.
        fresh = model.state_dict()
        state.update({name: fresh[name] for name in fresh if name.startswith(HEADS)})
    state_dict.update({prefix + name: value for name, value in state.items()})

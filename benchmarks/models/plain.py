"""Wave-ViT as a reader of the paper writes it: the baseline of every speed ratio of this project.

    wavevit benchmark --register benchmarks/models/plain.py --models plain_wavevit_s wavevit_s

Running or importing the file registers ``plain_wavevit_s`` and its like with timm. Nothing here is
tuned and nothing is spoilt: tokens are (B, N, C) and become NCHW maps and back by transposing,
where PyTorch itself decides what that copies; attention is matrix product, softmax, matrix product;
the wavelet transform is four grouped 2x2 convolutions of stride 2, its inverse one grouped
transposed convolution; the 1x1 reduction is a convolution. No part of our fast network is used, so
that a change there never moves the baseline; only the table of variants is shared.

The parameters have the names of the official checkpoints: those load as they are, and
``wavevit_s.load_state_dict(plain.state_dict())`` makes ours compute the same function. H and W are
multiples of 32, as for the official network. Without token labels.

Legend: B batch, C channels, H W rows and columns of a map, N tokens, h heads, d channels per head.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

from wavevit.models.wave_vit import VARIANTS

BLOCK_NORM_EPS = 1e-6

HAAR = (
    ((0.5, 0.5), (0.5, 0.5)),
    ((0.5, 0.5), (-0.5, -0.5)),
    ((0.5, -0.5), (0.5, -0.5)),
    ((0.5, -0.5), (-0.5, 0.5)),
)
"""Filters of LL, LH, HL, HH."""


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, C) tokens as a map (B, C, H, W) of size (H, W)."""
    B, _, C = tokens.shape
    return tokens.transpose(1, 2).reshape(B, C, *size)


def to_tokens(features: Tensor) -> Tensor:
    """A map (B, C, H, W) as tokens (B, N, C)."""
    return features.flatten(2).transpose(1, 2)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, N, C) tokens as (B, h, N, d)."""
    B, N, C = tokens.shape
    return tokens.reshape(B, N, num_heads, C // num_heads).transpose(1, 2)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention spelled out: (B, h, N, d) queries, (B, h, M, d) keys and values, to (B, N, C)."""
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


class HaarTransform(nn.Module):
    """(B, C, H, W) to its four bands side by side, (B, 4C, H/2, W/2)."""

    def __init__(self) -> None:
        super().__init__()
        for name, values in zip(("w_ll", "w_lh", "w_hl", "w_hh"), HAAR, strict=True):
            self.register_buffer(name, torch.tensor(values)[None, None])

    def forward(self, features: Tensor) -> Tensor:
        C = features.shape[1]
        bands = [
            F.conv2d(features, band.expand(C, -1, -1, -1), stride=2, groups=C)
            for band in (self.w_ll, self.w_lh, self.w_hl, self.w_hh)
        ]
        return torch.cat(bands, dim=1)


class InverseHaarTransform(nn.Module):
    """Four bands (B, 4C, H/2, W/2) to the map (B, C, H, W) whose transform they are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.tensor(HAAR)[:, None])

    def forward(self, bands: Tensor) -> Tensor:
        B, four_C, H, W = bands.shape
        C = four_C // 4
        by_channel = bands.reshape(B, 4, C, H, W).transpose(1, 2).reshape(B, four_C, H, W)
        return F.conv_transpose2d(by_channel, self.filters.repeat(C, 1, 1, 1), stride=2, groups=C)


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> list:
    """Convolution, BatchNorm and ReLU, keeping the size unless a stride is among the options."""
    padding = kernel_size // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, **options),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class WaveAttention(nn.Module):
    """Attention to keys and values from wavelet bands, beside their inverse (section 3.2)."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dwt = HaarTransform()
        self.idwt = InverseHaarTransform()
        self.reduce = nn.Sequential(*conv_norm_relu(dim, dim // 4, 1))
        self.filter = nn.Sequential(*conv_norm_relu(dim, dim, 3))
        self.kv_embed = nn.Conv2d(dim, dim, sr_ratio, sr_ratio) if sr_ratio > 1 else nn.Identity()
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim))
        self.proj = nn.Linear(dim + dim // 4, dim)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        bands = self.filter(self.dwt(self.reduce(to_map(tokens, size))))
        context = to_tokens(self.idwt(bands))
        k, v = self.kv(to_tokens(self.kv_embed(bands))).chunk(2, dim=-1)
        q, k, v = (split_heads(x, self.num_heads) for x in (self.q(tokens), k, v))
        return self.proj(torch.cat((softmax_attention(q, k, v), context), dim=-1))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        k, v = self.kv(tokens).chunk(2, dim=-1)
        q, k, v = (split_heads(x, self.num_heads) for x in (self.q(tokens), k, v))
        return self.proj(softmax_attention(q, k, v))


class DepthwiseConv(nn.Module):
    """A depthwise 3x3 convolution of tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return to_tokens(self.dwconv(to_map(tokens, size)))


class FeedForward(nn.Module):
    """Linear, depthwise convolution, GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(tokens), size)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward network, each with its residual."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), size))


class PatchEmbed(nn.Module):
    """A map at twice the stride, as tokens: convolution and LayerNorm, after the stem if any."""

    def __init__(self, in_channels: int, embed_dim: int, stem_dim: int = 0) -> None:
        super().__init__()
        self.conv = nn.Identity()
        if stem_dim:
            self.conv = nn.Sequential(
                *conv_norm_relu(in_channels, stem_dim, 7, stride=2, bias=False),
                *conv_norm_relu(stem_dim, stem_dim, 3, bias=False),
                *conv_norm_relu(stem_dim, stem_dim, 3, bias=False),
            )
        self.proj = nn.Conv2d(stem_dim or in_channels, embed_dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
        features = self.proj(self.conv(features))
        return self.norm(to_tokens(features)), features.shape[2:]


class ClassAttention(nn.Module):
    """Attention of the first token, the class token, to all tokens: (B, N, C) to (B, 1, C)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kv = nn.Linear(dim, 2 * dim)
        self.q = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        k, v = self.kv(tokens).chunk(2, dim=-1)
        q, k, v = (split_heads(x, self.num_heads) for x in (self.q(tokens[:, :1]), k, v))
        return self.proj(softmax_attention(q, k, v))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(tokens)))


class ClassBlock(nn.Module):
    """Updates the class token, the first one, from all tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.attn = ClassAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        cls_token = tokens[:, :1]
        cls_token = cls_token + self.attn(self.norm1(tokens))
        cls_token = cls_token + self.mlp(self.norm2(cls_token))
        return torch.cat((cls_token, tokens[:, 1:]), dim=1)


class PlainWaveVit(nn.Module):
    """Wave-ViT with class-attention head: images (B, in_chans, H, W) to logits (B, num_classes).

    Args:
        in_chans: Channels of the image.
        num_classes: Classes of the head.
        stem_dim: Width of the stem's convolutions.
        embed_dims: Channels of the four stages.
        num_heads: Attention heads of the four stages.
        depths: Blocks of the four stages.
        mlp_ratios: Feed-forward expansion of the four stages.
        sr_ratios: Key/value strides after the transform; used by the two wavelet stages.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 over all blocks.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        stem_dim: int = 32,
        embed_dims: Sequence[int] = (64, 128, 320, 448),
        num_heads: Sequence[int] = (2, 4, 10, 14),
        depths: Sequence[int] = (3, 4, 6, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        sr_ratios: Sequence[int] = (4, 2, 1, 1),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        last_block = max(sum(depths) - 1, 1)
        drop_paths = iter(drop_path_rate * i / last_block for i in range(sum(depths)))
        for i, dim in enumerate(embed_dims):
            embed = PatchEmbed(embed_dims[i - 1], dim) if i else PatchEmbed(in_chans, dim, stem_dim)
            attention: list[nn.Module] = [
                WaveAttention(dim, num_heads[i], sr_ratios[i])
                if i < 2
                else Attention(dim, num_heads[i])
                for _ in range(depths[i])
            ]
            blocks = [Block(dim, attn, mlp_ratios[i], next(drop_paths)) for attn in attention]
            setattr(self, f"patch_embed{i + 1}", embed)
            setattr(self, f"block{i + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(dim, eps=BLOCK_NORM_EPS))
        dim = embed_dims[-1]
        self.post_network = nn.ModuleList([ClassBlock(dim, num_heads[-1], mlp_ratios[-1])])
        self.head = nn.Linear(dim, num_classes)

    def stages(self) -> Iterator[tuple[nn.Module, nn.Module, nn.Module]]:
        """Patch embedding, blocks and norm of each stage."""
        for i in (1, 2, 3, 4):
            yield tuple(getattr(self, f"{part}{i}") for part in ("patch_embed", "block", "norm"))

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2] % 32 or image.shape[-1] % 32:
            raise ValueError(
                f"expected H and W in multiples of 32, got {tuple(image.shape[-2:])}; resize the "
                "images, or use wavevit's own models, which take any size"
            )
        features = image
        for patch_embed, blocks, norm in self.stages():
            tokens, size = patch_embed(features)
            for block in blocks:
                tokens = block(tokens, size)
            if norm is not self.norm4:
                features = to_map(norm(tokens), size)
        tokens = torch.cat((tokens.mean(dim=1, keepdim=True), tokens), dim=1)
        for block in self.post_network:
            tokens = block(tokens)
        return self.head(self.norm4(tokens)[:, 0])


default_cfgs = generate_default_cfgs(
    {f"plain_{variant}": {"input_size": (3, 224, 224), "num_classes": 1000} for variant in VARIANTS}
)


def _register(variant: str) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> PlainWaveVit:
        return build_model_with_cfg(
            PlainWaveVit, create.__name__, pretrained, **VARIANTS[variant] | kwargs
        )

    create.__name__ = f"plain_{variant}"
    if not is_model(create.__name__):  # the file may be run twice in a process
        register_model(create)


for _variant in VARIANTS:
    _register(_variant)

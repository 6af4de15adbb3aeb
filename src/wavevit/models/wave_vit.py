"""Wave-ViT (ECCV 2022, arXiv 2207.04978), bottom-up, ending in the table of variants.

Legend: B batch, C channels, H W rows and columns of a map, N tokens, h heads, d channels per head.

Tokens live as ``(B, H, W, C)`` in memory. A convolution sees the same memory as an NCHW tensor in
channels_last format, so no transpose is ever copied; stages take and return such NCHW tensors.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerNorm2d, Mlp, trunc_normal_
from timm.models import FeatureListNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from wavevit.layers.folding import fold_batch_norm, fold_layer_norm, merge_linears
from wavevit.layers.inference import use_inference_layers
from wavevit.models.official import adapt, adapt_before_loading
from wavevit.models.token_label import MixBox, draw_mix_box, swap_mix_box
from wavevit.ops.add_layer_norm import add_layer_norm
from wavevit.ops.depthwise_gelu import depthwise_gelu
from wavevit.ops.dwt import haar_dwt2, haar_idwt2
from wavevit.ops.extension import crop, is_exporting
from wavevit.ops.triton_support import kernels_enabled, use_kernels

GlobalPool = Literal["token", "avg", ""]

EMBED_NORM_EPS = 1e-5  # patch embeddings and kv_norm keep PyTorch's default
BLOCK_NORM_EPS = 1e-6


def to_nchw(tokens: Tensor) -> Tensor:
    """The same memory ``(B, H, W, C)`` seen as ``(B, C, H, W)`` in channels_last format."""
    return tokens.permute(0, 3, 1, 2)


def to_nhwc(features: Tensor) -> Tensor:
    """A channels_last ``(B, C, H, W)`` seen as ``(B, H, W, C)``."""
    return features.permute(0, 2, 3, 1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, ``(B, h, N, d)``.

    On the CPU the backward pass of PyTorch's kernel takes six times longer in bf16 than in fp32
    (torch 2.15, AVX512-BF16), so training in low precision there computes it in fp32.

    Args:
        q: Queries ``(B, h, N, d)``.
        k: Keys ``(B, h, M, d)``.
        v: Values ``(B, h, M, d)``.
    """
    if q.device.type == "cpu" and q.requires_grad and q.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
        return attended.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class PatchEmbed(nn.Module):
    """Overlapping 3x3 stride-2 patch embedding: ``(B, C, H, W)`` to half the size (section 3).

    Args:
        in_channels: Channels of the input map.
        embed_dim: Channels of the output map.
    """

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=3, stride=2, padding=1)
        self.norm = LayerNorm2d(embed_dim, eps=EMBED_NORM_EPS)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.proj(features))

    def reparameterize(self) -> None:
        """Takes the layers that a CPU runs fastest (inference only)."""
        use_inference_layers(self)


class Stem(nn.Module):
    """Three convolutions at stride 2, then a stride-2 projection: image to stride 4 (section 3).

    Args:
        in_channels: Channels of the image.
        hidden_dim: Width of the three convolutions.
        embed_dim: Channels of the output map.
    """

    def __init__(self, in_channels: int, hidden_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, hidden_dim, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.ReLU(inplace=True),
        )
        self.proj = nn.Conv2d(hidden_dim, embed_dim, kernel_size=3, stride=2, padding=1)
        self.norm = LayerNorm2d(embed_dim, eps=EMBED_NORM_EPS)

    def forward(self, image: Tensor) -> Tensor:
        _check_image(image, self.in_channels)
        image = image.contiguous(memory_format=torch.channels_last)
        return self.norm(self.proj(self.conv(image)))

    def reparameterize(self) -> None:
        """Folds the BatchNorms into the convolutions before them (inference only)."""
        for index in (0, 3, 6):
            conv, norm = self.conv[index], self.conv[index + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm):
                self.conv[index] = fold_batch_norm(conv, norm)
                self.conv[index + 1] = nn.Identity()
        use_inference_layers(self)


class WaveletAttention(nn.Module):
    """Attention whose keys and values are shrunk by a Haar DWT (paper section 3.2).

    The inverse transform of the filtered sub-bands is concatenated to the attention output as
    local context. Any H and W: the input of the DWT is extended by its edge rows and columns to a
    multiple of what DWT and ``kv_embed`` need, and the local context is cropped back.

    Args:
        dim: Channels C, a multiple of 4 and of ``num_heads``.
        num_heads: Attention heads.
        sr_ratio: Extra stride of keys and values after the DWT's 2.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pad_multiple = 2 * sr_ratio
        self.q = nn.Linear(dim, dim)
        self.reduce = nn.Linear(dim, dim // 4)  # the paper's 1x1 convolution, as a matrix product
        self.reduce_norm: nn.Module = nn.BatchNorm2d(dim // 4)
        self.filter = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.filter_norm: nn.Module = nn.BatchNorm2d(dim)
        self.kv_embed = (
            nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            if sr_ratio > 1
            else nn.Identity()
        )
        self.kv_norm = nn.LayerNorm(dim, eps=EMBED_NORM_EPS)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim + dim // 4, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        B, H, W, C = tokens.shape
        reduced = self.reduce_norm(to_nchw(self.reduce(tokens)))
        bands = haar_dwt2(to_nhwc(self._pad(reduced)), channels_last=True, relu=True)
        filtered = F.relu(self.filter_norm(self.filter(to_nchw(bands))), inplace=True)
        context = haar_idwt2(to_nhwc(filtered), channels_last=True)
        context = crop(crop(context, 1, H), 2, W)

        kv = self.kv(self.kv_norm(to_nhwc(self.kv_embed(filtered))))
        k, v = kv.reshape(B, -1, 2, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q = self.q(tokens).reshape(B, H * W, self.num_heads, C // self.num_heads).transpose(1, 2)
        attended = attend(q, k, v)
        attended = attended.transpose(1, 2).reshape(B, H, W, C)
        return self.proj(torch.cat((attended, context), dim=-1))

    def _pad(self, features: Tensor) -> Tensor:
        # Multiples in this form, so that an exporter can see that the padded size is even.
        multiple = self.pad_multiple
        H, W = features.shape[-2:]
        pad_h = multiple * ((H + multiple - 1) // multiple) - H
        pad_w = multiple * ((W + multiple - 1) // multiple) - W
        # An exported graph keeps the operation whatever the example's size: it serves every size.
        if is_exporting() or pad_h or pad_w:
            return F.pad(features, (0, pad_w, 0, pad_h), mode="replicate")
        return features

    def reparameterize(self) -> None:
        """Folds BatchNorms and ``kv_norm``'s affine into their neighbours (inference only)."""
        if isinstance(self.reduce_norm, _BatchNorm):
            self.reduce = fold_batch_norm(self.reduce, self.reduce_norm)
            self.reduce_norm = nn.Identity()
        if isinstance(self.filter_norm, _BatchNorm):
            self.filter = fold_batch_norm(self.filter, self.filter_norm)
            self.filter_norm = nn.Identity()
        self.kv_norm = fold_layer_norm(self.kv_norm, [self.kv])
        use_inference_layers(self)


class Attention(nn.Module):
    """Standard multi-head self-attention over all positions of the map (stages 3 and 4).

    Args:
        dim: Channels C, a multiple of ``num_heads``.
        num_heads: Attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        B, H, W, C = tokens.shape
        q = self.q(tokens).reshape(B, H * W, self.num_heads, C // self.num_heads).transpose(1, 2)
        kv = self.kv(tokens).reshape(B, H * W, 2, self.num_heads, C // self.num_heads)
        k, v = kv.permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(B, H, W, C))


class MergedAttention(nn.Module):
    """The inference form of `Attention`: queries, keys and values in one matrix product.

    Args:
        attention: The module to take the weights of.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv = merge_linears([attention.q, attention.kv])
        self.proj = attention.proj
        use_inference_layers(self)

    def forward(self, tokens: Tensor) -> Tensor:
        B, H, W, C = tokens.shape
        qkv = self.qkv(tokens).reshape(B, H * W, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(B, H, W, C))


class ConvMlp(nn.Module):
    """The feed-forward network of PVT v2: linear, depthwise 3x3, GELU, linear (section 3).

    Args:
        dim: Channels in and out.
        hidden_dim: Channels between the linears.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.max_hidden_bytes: int | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        if self.max_hidden_bytes is None:
            return self._forward(tokens)
        H, W = tokens.shape[1:3]
        image_bytes = H * W * self.fc1.out_features * tokens.element_size()
        images = max(1, self.max_hidden_bytes // image_bytes)
        # Slices of the batch, so that what is between the linears stays in the cache.
        return torch.cat([self._forward(some) for some in tokens.split(images)])

    def _forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        return self.fc2(depthwise_gelu(hidden, self.dwconv.weight, self.dwconv.bias))


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residuals, on ``(B, H, W, C)``.

    Args:
        dim: Channels C.
        attn: Attention module on ``(B, H, W, C)``.
        mlp_ratio: Hidden width of the feed-forward network over ``dim``.
        drop_path: Probability of dropping a residual branch for a sample.
    """

    def __init__(
        self, dim: int, attn: WaveletAttention | Attention, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.attn: nn.Module = attn
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        branch = self.drop_path(self.attn(self.norm1(tokens)))
        norm2 = self.norm2
        tokens, normed = add_layer_norm(tokens, branch, norm2.weight, norm2.bias, norm2.eps)
        return tokens + self.drop_path(self.mlp(normed))

    def reparameterize(self) -> None:
        """Folds the norms whose fold is exact, and merges q, k and v (inference only)."""
        if isinstance(self.attn, WaveletAttention):
            self.attn.reparameterize()
            self.norm1 = fold_layer_norm(self.norm1, [self.attn.q, self.attn.reduce])
        elif isinstance(self.attn, Attention):
            merged = MergedAttention(self.attn)
            self.attn = merged
            self.norm1 = fold_layer_norm(self.norm1, [merged.qkv])
        self.norm2 = fold_layer_norm(self.norm2, [self.mlp.fc1])
        use_inference_layers(self)
        use_inference_layers(self.mlp)


class Stage(nn.Module):
    """One stage: ``(B, C_in, H, W)`` to ``(B, C, ceil(H/s), ceil(W/s))``, s = 4 or 2.

    Args:
        patch_embed: Module that brings the input to the stage's stride and width.
        blocks: The stage's blocks on ``(B, H, W, C)``.
        norm: Norm of the stage's output map, or identity.
    """

    def __init__(self, patch_embed: nn.Module, blocks: Sequence[Block], norm: nn.Module) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.grad_checkpointing = False

    def forward(self, features: Tensor) -> Tensor:
        return self.forward_blocks(self.patch_embed(features))

    def forward_blocks(self, features: Tensor) -> Tensor:
        """The stage without its patch embedding, on the embedded ``(B, C, H, W)`` map."""
        tokens = to_nhwc(features)
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                tokens = checkpoint(
                    block, tokens, use_reentrant=False, **_recompute_arguments(block)
                )
            else:
                tokens = block(tokens)
        return self.norm(to_nchw(tokens))

    def reparameterize(self) -> None:
        """Takes the layers that a CPU runs fastest (inference only)."""
        use_inference_layers(self)


@contextmanager
def _frozen_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm uses batch statistics as ever but does not change its running ones."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]  # synchronised ones too
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not track_running_stats=False: autograd saves the running statistics, and a recomputation
        # must save what the first pass did.
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _recompute_arguments(block: nn.Module) -> dict[str, Any]:
    """Keeps the recomputation from updating BatchNorm's running statistics a second time."""
    if torch.compiler.is_compiling():  # the compiler traces one forward and takes no context
        return {}

    @contextmanager
    def again(enabled: bool) -> Iterator[None]:
        with use_kernels(enabled), _frozen_batch_statistics(block):
            yield

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        # The operations of the first pass, even where the switch has changed since.
        return nullcontext(), again(kernels_enabled())

    return {"context_fn": contexts}


class ClassAttentionBlock(nn.Module):
    """Updates one class token, the mean of all tokens at first, from the map (section 3).

    Args:
        dim: Channels C, a multiple of ``num_heads``.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward network over ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, features: Tensor) -> Tensor:
        """The class token ``(B, C)`` of an un-normed map ``(B, C, H, W)``."""
        tokens = to_nhwc(features).flatten(1, 2)
        cls_token = tokens.mean(dim=1, keepdim=True)
        B, N, C = tokens.shape
        heads = (self.num_heads, C // self.num_heads)
        normed = self.norm1(torch.cat((cls_token, tokens), dim=1))
        q = self.q(normed[:, :1]).reshape(B, 1, *heads).transpose(1, 2)
        k, v = self.kv(normed).reshape(B, N + 1, 2, *heads).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).reshape(B, 1, C)
        cls_token = cls_token + self.proj(attended)
        cls_token = cls_token + self.mlp(self.norm2(cls_token))
        return cls_token.squeeze(1)

    def reparameterize(self) -> None:
        """Folds the affine part of both norms into the linears after them (inference only)."""
        self.norm1 = fold_layer_norm(self.norm1, [self.q, self.kv])
        self.norm2 = fold_layer_norm(self.norm2, [self.mlp.fc1])
        use_inference_layers(self)
        use_inference_layers(self.mlp)


class WaveVit(nn.Module):
    """Wave-ViT classifier and backbone for normalised images ``(B, in_chans, H, W)``, H, W >= 32.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 gives pooled features ``(B, num_features)``.
        global_pool: "token" = class-attention head, "avg" = mean of the normed map, "" = no
            pooling (the normed map, only with ``num_classes=0``).
        token_label: Adds the auxiliary head of token labeling. Training then returns
            ``(class logits (B, K), token logits (B, N, K), mix box (r1, c1, r2, c2))``;
            evaluation adds half of the tokens' largest logits to the class logits.
        stem_dim: Width of the stem's convolutions.
        embed_dims: Channels of the four stages.
        num_heads: Attention heads of the four stages.
        depths: Blocks of the four stages.
        mlp_ratios: Feed-forward expansion of the four stages.
        sr_ratios: Key/value strides after the DWT; used by the two wavelet stages.
        drop_rate: Dropout probability before the head.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 over all blocks.

    Weights are loaded with their official names too. A head with another class count is left out
    with a logged warning, in `load_state_dict` as well, so that fine-tuning starts in one line.

    Raises:
        ValueError: Unknown ``global_pool``, or "" together with classes or token labels.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: GlobalPool = "token",
        token_label: bool = False,
        stem_dim: int = 32,
        embed_dims: Sequence[int] = (64, 128, 320, 448),
        num_heads: Sequence[int] = (2, 4, 10, 14),
        depths: Sequence[int] = (3, 4, 6, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        sr_ratios: Sequence[int] = (4, 2, 1, 1),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.token_label = token_label
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self._class_attn_args = (embed_dims[-1], num_heads[-1], mlp_ratios[-1])

        last_block = max(sum(depths) - 1, 1)
        drop_paths = iter(drop_path_rate * i / last_block for i in range(sum(depths)))
        stages = []
        self.feature_info = []
        for i, dim in enumerate(embed_dims):
            wavelet = i < 2
            last = i == len(embed_dims) - 1
            patch_embed = PatchEmbed(embed_dims[i - 1], dim) if i else Stem(in_chans, stem_dim, dim)
            blocks = [
                Block(
                    dim,
                    WaveletAttention(dim, num_heads[i], sr_ratios[i])
                    if wavelet
                    else Attention(dim, num_heads[i]),
                    mlp_ratios[i],
                    next(drop_paths),
                )
                for _ in range(depths[i])
            ]
            norm: nn.Module = nn.Identity() if last else LayerNorm2d(dim, eps=BLOCK_NORM_EPS)
            stages.append(Stage(patch_embed, blocks, norm))
            # The last map is normed after class attention has read it, so by a child of its own.
            module = "norm" if last else f"stages.{i}"
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**i, "module": module})
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = LayerNorm2d(embed_dims[-1], eps=BLOCK_NORM_EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.class_attn: ClassAttentionBlock | None = None
        self.aux_head: nn.Linear | None = None
        self._build_head(num_classes, global_pool)
        self.apply(_init_weights)
        self.register_load_state_dict_pre_hook(adapt_before_loading)  # type: ignore[no-untyped-call]

    def _build_head(self, num_classes: int, global_pool: GlobalPool) -> None:
        if global_pool not in ("token", "avg", ""):
            raise ValueError(f'global_pool must be "token", "avg" or "", got {global_pool!r}')
        if global_pool == "" and (num_classes or self.token_label):
            raise ValueError(
                'global_pool="" returns a map and has no head: use it with num_classes=0 and '
                "without token_label"
            )
        self.num_classes = num_classes
        self.global_pool = global_pool
        if global_pool != "token":
            self.class_attn = None
        elif self.class_attn is None:
            self.class_attn = ClassAttentionBlock(*self._class_attn_args)
        self.head: nn.Module = (
            nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        )
        self.aux_head = (
            nn.Linear(self.num_features, num_classes)
            if self.token_label and num_classes > 0
            else None
        )

    # --- timm's interface -----------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        """Names without weight decay beyond norms and biases: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order parameters by depth, for layer-wise learning-rate decay."""
        return {
            "stem": r"^stages\.0\.patch_embed",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.patch_embed", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99998,)),
                (r"^(?:norm|class_attn)", (99999,)),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def set_max_hidden_bytes(self, max_bytes: int | None) -> None:
        """Runs the feed-forward networks on slices of the batch; outputs stay the same.

        Their hidden tensors hold four to eight times what a stage's tokens do. In slices they take
        less memory and may stay in the cache between operations.

        Args:
            max_bytes: Of a hidden tensor, in the dtype of the tokens; at least one image is taken.
                None takes the whole batch, as at first.

        Raises:
            ValueError: Not positive.
        """
        _set_max_hidden_bytes(self, max_bytes)

    def get_classifier(self) -> nn.Module:
        """The classifier layer; with token labels the pair of class and auxiliary head."""
        if self.aux_head is not None:
            return nn.ModuleList([self.head, self.aux_head])
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """Replaces the head by a freshly initialised one.

        Args:
            num_classes: Classes of the new head; 0 removes it.
            global_pool: Changes the pooling too, if given.
        """
        had_class_attn = self.class_attn is not None
        if global_pool == "" and num_classes == 0:
            self.token_label = False
        self._build_head(num_classes, self.global_pool if global_pool is None else global_pool)
        reference = next(self.stages.parameters())
        fresh = [self.head, self.aux_head, None if had_class_attn else self.class_attn]
        for module in fresh:
            if module is not None:
                module.apply(_init_weights)
                module.to(reference.device, reference.dtype).train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = True,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of the stages, the same as ``features_only`` gives.

        Args:
            x: Images ``(B, in_chans, H, W)``.
            indices: Last n stages if an int, these stages if a sequence, all if None.
            norm: Accepted for timm's interface; maps are always the normed ones.
            stop_early: Does not compute stages after the last one asked for.
            output_fmt: "NCHW" only.
            intermediates_only: Returns the list of maps alone.

        Returns:
            The maps ``(B, C, H/s, W/s)``, after the output of `forward_features` unless
            ``intermediates_only``.

        Raises:
            ValueError: Another ``output_fmt`` than "NCHW".
        """
        if output_fmt != "NCHW":
            raise ValueError(f'output_fmt must be "NCHW", got {output_fmt!r}')
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        for i, stage in enumerate(self.stages):
            if stop_early and i > max_index:
                break
            x = stage(x)
            if i in take_indices:
                intermediates.append(self.norm(x) if i == len(self.stages) - 1 else x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes stages and head that `forward_intermediates` with ``indices`` does not need.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Also removes the last norm, when the last stage goes.
            prune_head: Removes the head.

        Returns:
            The indices of the stages that are returned.
        """
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        pruned_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_head or pruned_end:
            self.reset_classifier(0, "")
        if pruned_end:
            self.norm = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's map ``(B, C, ceil(H/32), ceil(W/32))`` before its norm.

        Class attention reads un-normed tokens, so the norm belongs to `forward_head`; use
        ``features_only`` or `forward_intermediates` for normed maps.

        Args:
            x: Images ``(B, in_chans, H, W)``.
        """
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits ``(B, num_classes)`` of a map of `forward_features`.

        Args:
            x: Un-normed map ``(B, C, H, W)``.
            pre_logits: Returns the pooled features ``(B, C)`` instead.
        """
        if self.global_pool == "":
            return self.norm(x)
        pooled = self.head_drop(self._pool(x))
        if pre_logits:
            return pooled
        logits = self.head(pooled)
        if self.aux_head is not None and not self.training:
            logits = logits + 0.5 * self._token_logits(x).amax(dim=1)
        return logits

    def forward(self, x: Tensor, mix_box: MixBox | None = None) -> Any:
        """Logits ``(B, num_classes)``; with token labels in training a tuple, see the class.

        Args:
            x: Normalised images ``(B, in_chans, H, W)``.
            mix_box: Rows and columns ``(r1, c1, r2, c2)`` on the stride-32 grid that mix-token
                swaps; drawn when None. Only used in training with token labels.

        Raises:
            ValueError: Not a ``(B, in_chans, H, W)`` tensor with H, W >= 32.
        """
        if self.aux_head is None or not self.training:
            return self.forward_head(self.forward_features(x))
        first, *later = self.stages
        assert isinstance(first, Stage)
        features = first.patch_embed(x)
        if mix_box is None:
            mix_box = draw_mix_box(math.ceil(x.shape[-2] / 32), math.ceil(x.shape[-1] / 32))
        features = swap_mix_box(features, mix_box, scale=8)
        features = first.forward_blocks(features)
        for stage in later:
            features = stage(features)
        token_logits = self._token_logits(features)
        H, W = features.shape[-2:]
        token_map = token_logits.transpose(1, 2).reshape(len(x), -1, H, W)
        token_logits = swap_mix_box(token_map, mix_box, scale=1).flatten(2).transpose(1, 2)
        return self.forward_head(features), token_logits, mix_box

    def _pool(self, features: Tensor) -> Tensor:
        if self.class_attn is None:
            return self.norm(features).mean(dim=(2, 3))
        # norm4 acts on each token alone: the class token needs no copy of the others beside it.
        cls_token = self.class_attn(features)
        return self.norm(cls_token[:, :, None, None]).flatten(1)

    def _token_logits(self, features: Tensor) -> Tensor:
        assert self.aux_head is not None
        return self.aux_head(to_nhwc(self.norm(features)).flatten(1, 2))


def _set_max_hidden_bytes(model: nn.Module, max_bytes: int | None) -> None:
    if max_bytes is not None and (not isinstance(max_bytes, int) or max_bytes < 1):
        raise ValueError(f"expected a positive number of bytes or None, got {max_bytes!r}")
    for module in model.modules():
        if isinstance(module, ConvMlp):
            module.max_hidden_bytes = max_bytes


def _check_image(x: Tensor, in_chans: int) -> None:
    if x.ndim != 4 or x.shape[1] != in_chans or x.shape[2] < 32 or x.shape[3] < 32:
        raise ValueError(
            f"expected images (B, {in_chans}, H, W) with H, W >= 32, got {tuple(x.shape)}; "
            "resize or pad smaller images"
        )


def _init_weights(module: nn.Module) -> None:
    """Official initialisation: truncated normal for linears, fan-out normal for convolutions."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        kh, kw = module.kernel_size
        nn.init.normal_(
            module.weight, std=math.sqrt(2 * module.groups / (kh * kw * module.out_channels))
        )
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class WaveVitFeatures(FeatureListNet):
    """timm's ``features_only`` network; takes whole-model and official weights too.

    Args:
        model: The `WaveVit` to take stages from.
        **kwargs: Options of timm's FeatureListNet.
    """

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.register_load_state_dict_pre_hook(adapt_before_loading)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass (timm's own would recompute stages)."""
        for module in self.values():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def set_max_hidden_bytes(self, max_bytes: int | None) -> None:
        """As that of `WaveVit`.

        Args:
            max_bytes: Of a hidden tensor; None takes the whole batch.

        Raises:
            ValueError: Not a positive number of bytes.
        """
        _set_max_hidden_bytes(self, max_bytes)


# --- Variants (section 3, table) ------------------------------------------------------------------


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Official or our own weights under our names, for timm's pretrained loading.

    Args:
        state_dict: Names to tensors.
        model: The network the weights are for.
    """
    return adapt(model, state_dict)[0]


def _create_wavevit(variant: str, pretrained: bool, **kwargs: Any) -> WaveVit:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    model: WaveVit = build_model_with_cfg(
        WaveVit,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={
            "flatten_sequential": True,
            "out_indices": out_indices,
            "feature_cls": WaveVitFeatures,
        },
        **kwargs,
    )
    return model


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "min_input_size": (3, 32, 32),
        "pool_size": (7, 7),
        "fixed_input_size": False,
        "crop_pct": 0.96,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.patch_embed.conv.0",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2207.04978",
        "paper_name": "Wave-ViT: Unifying Wavelet and Transformers for Visual Representation "
        "Learning",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "wavevit_test": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
        "wavevit_nano": _cfg(),
        "wavevit_s": _cfg(),
        "wavevit_b": _cfg(),
        "wavevit_l": _cfg(),
    }
)

VARIANTS: dict[str, dict[str, Any]] = {
    "wavevit_test": {
        "stem_dim": 8,
        "embed_dims": (8, 16, 24, 32),
        "num_heads": (1, 2, 3, 4),
        "depths": (1, 1, 1, 1),
    },
    "wavevit_nano": {
        "stem_dim": 16,
        "embed_dims": (32, 64, 160, 224),
        "num_heads": (1, 2, 5, 7),
        "depths": (2, 2, 2, 2),
    },
    "wavevit_s": {
        "stem_dim": 32,
        "embed_dims": (64, 128, 320, 448),
        "num_heads": (2, 4, 10, 14),
        "depths": (3, 4, 6, 3),
    },
    "wavevit_b": {
        "stem_dim": 64,
        "embed_dims": (64, 128, 320, 512),
        "num_heads": (2, 4, 10, 16),
        "depths": (3, 4, 12, 3),
    },
    "wavevit_l": {
        "stem_dim": 64,
        "embed_dims": (96, 192, 384, 512),
        "num_heads": (3, 6, 12, 16),
        "depths": (3, 6, 18, 3),
    },
}


@register_model
def wavevit_test(pretrained: bool = False, **kwargs: Any) -> WaveVit:
    """A toy of 0.1 M parameters for tests, as timm's own ``test_`` models."""
    return _create_wavevit("wavevit_test", pretrained, **VARIANTS["wavevit_test"] | kwargs)


@register_model
def wavevit_nano(pretrained: bool = False, **kwargs: Any) -> WaveVit:
    """A small Wave-ViT of ours (not in the paper) for quick starts and small devices."""
    return _create_wavevit("wavevit_nano", pretrained, **VARIANTS["wavevit_nano"] | kwargs)


@register_model
def wavevit_s(pretrained: bool = False, **kwargs: Any) -> WaveVit:
    """Wave-ViT-S of the paper."""
    return _create_wavevit("wavevit_s", pretrained, **VARIANTS["wavevit_s"] | kwargs)


@register_model
def wavevit_b(pretrained: bool = False, **kwargs: Any) -> WaveVit:
    """Wave-ViT-B of the paper."""
    return _create_wavevit("wavevit_b", pretrained, **VARIANTS["wavevit_b"] | kwargs)


@register_model
def wavevit_l(pretrained: bool = False, **kwargs: Any) -> WaveVit:
    """Wave-ViT-L of the paper."""
    return _create_wavevit("wavevit_l", pretrained, **VARIANTS["wavevit_l"] | kwargs)

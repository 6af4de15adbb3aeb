"""Attention weights of a Wave-ViT, from its own queries and keys.

Legend: B images, N tokens, h heads, d channels per head, C channels, H W rows and columns.
"""

from torch import Tensor, nn

from wavevit.explain.watching import look, outputs_of, plain
from wavevit.models.wave_vit import (
    Attention,
    ClassAttentionBlock,
    MergedAttention,
    Stage,
    WaveletAttention,
)


def class_token_attention(model: nn.Module, images: Tensor) -> Tensor:
    """Where the class token looks: its attention to the positions of the last map.

    The class token's attention to itself is left out, and the rest scaled to sum to 1.

    Args:
        model: A Wave-ViT with class attention; it is run in evaluation mode.
        images: Normalised images ``(B, 3, H, W)``.

    Returns:
        float32 ``(B, h, H/32, W/32)``, each head's weights summing to 1.

    Raises:
        ValueError: A model without class attention.
    """
    model = plain(model)
    blocks = [module for module in model.modules() if isinstance(module, ClassAttentionBlock)]
    if not blocks:
        raise ValueError(
            "expected a Wave-ViT with class attention; this model has none, as with "
            'global_pool="avg" or as a backbone: take grad_cam'
        )
    block = blocks[0]
    last = [module for module in model.modules() if isinstance(module, Stage)][-1]
    with outputs_of(block.q, block.kv, last) as kept:
        look(model, images)
    (q,), (kv,), (features,) = kept
    weights = _weights(q, kv[:, 1:, : q.shape[-1]], block.num_heads)
    return weights.unflatten(-1, features.shape[-2:])[:, :, 0]


def attention_map(
    model: nn.Module, images: Tensor, stage: int, block: int, query: tuple[int, int]
) -> Tensor:
    """Where one position of a stage's map looks, in one of the stage's blocks.

    Args:
        model: A Wave-ViT, or a network that contains one; it is run in evaluation mode.
        images: Normalised images ``(B, 3, H, W)``; for a detector in [0, 1].
        stage: 0 to 3, or from the last if negative.
        block: Of the stage; from 0, or from the last if negative.
        query: Row and column of the position on the stage's map.

    Returns:
        float32 ``(B, h, rows, columns)``, each head's weights summing to 1. In the stages 2 and 3
        the keys are the stage's own positions. In the wavelet blocks of stages 0 and 1 they are the
        sub-bands shrunk once more by ``sr_ratio``: a key stands for ``2 * sr_ratio`` positions a
        side, and those of the last row and column may reach over the border of the map.

    Raises:
        ValueError: No Wave-ViT, or no such stage, block or position.
    """
    model = plain(model)
    attention = _attention(model, stage, block)
    linears = (
        [attention.qkv] if isinstance(attention, MergedAttention) else [attention.q, attention.kv]
    )
    with outputs_of(*linears) as kept:
        look(model, images)
    if isinstance(attention, MergedAttention):
        q, kv = kept[0][0].tensor_split([attention.proj.in_features], dim=-1)
    else:
        q, kv = kept[0][0], kept[1][0]
    H, W, C = q.shape[1:]
    row, column = query
    if not (0 <= row < H and 0 <= column < W):
        raise ValueError(
            f"the map of stage {stage} has {H} x {W} positions, rows 0 to {H - 1} and columns 0 to "
            f"{W - 1}; got the query {tuple(query)}"
        )
    weights = _weights(q[:, row, column, None], kv[..., :C].flatten(1, 2), attention.num_heads)
    return weights.unflatten(-1, kv.shape[1:3])[:, :, 0]


def _attention(
    model: nn.Module, stage: int, block: int
) -> WaveletAttention | Attention | MergedAttention:
    stages = [module for module in model.modules() if isinstance(module, Stage)]
    if not stages:
        raise ValueError("expected a Wave-ViT, or a network that contains one")
    if not -len(stages) <= stage < len(stages):
        raise ValueError(f"the stages are 0 to {len(stages) - 1}, got {stage}")
    blocks = stages[stage].blocks
    if not -len(blocks) <= block < len(blocks):
        raise ValueError(f"the blocks of stage {stage} are 0 to {len(blocks) - 1}, got {block}")
    attention = blocks[block].attn
    assert isinstance(attention, WaveletAttention | Attention | MergedAttention)
    return attention


def _weights(q: Tensor, k: Tensor, num_heads: int) -> Tensor:
    """Softmax weights ``(B, h, Q, N)`` of queries ``(B, Q, C)`` on keys ``(B, N, C)``."""
    q, k = (x.float().unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)

"""Host KV's tiles, made by torch: bit for bit what `tile.c` makes of the same rows.

A tile is one block's K and V of one kv head. Outside the host it is bytes: a layout says how they
lie, and a layout that is not known here is refused.
"""

from __future__ import annotations

import torch

from omniserve_native import BLOCK_TOKENS, DType, Layout

# How many dims of a token's K, and how many tokens of V, lie side by side.
SIDE_BY_SIDE = {
    ("dim,token", "token,dim"): 1,
    ("dim/2,token,2", "token/2,dim,2"): 2,
    ("dim/4,token,4 +128", "token/4,dim,4 k,v scales"): 4,
}
LEAST_MAGNITUDE = 1e-30  # of a row that is not 0
NAN_BITS = 0x7FC0


def whole_blocks(start: int, count: int) -> tuple[int, int]:
    """Of tokens [start, start + count): the first that begins a block, and the end of the last
    whole one, both counted from `start`."""
    first = min(-start % BLOCK_TOKENS, count)
    return first, first + (count - first) // BLOCK_TOKENS * BLOCK_TOKENS


def pack_tiles(k: torch.Tensor, v: torch.Tensor, layout: Layout) -> torch.Tensor:
    """k and v [blocks * BLOCK_TOKENS, Hkv, D] of the layout's dtype, or of any where that is int8:
    uint8 [blocks, Hkv, tile_bytes] on their device. ValueError: the layout is not known."""
    together = _side_by_side(layout)
    if layout.dtype is DType.I8:
        (k, k_scales), (v, v_scales) = _quantised(k), _quantised(v)
        k = k.bitwise_xor(-128)  # adds 128
    count, heads, size = k.shape
    blocks, half = count // BLOCK_TOKENS, BLOCK_TOKENS * size
    keys = k.reshape(blocks, BLOCK_TOKENS, heads, size // together, together)
    values = v.reshape(blocks, BLOCK_TOKENS // together, together, heads, size)
    tiles = k.new_empty(blocks, heads, layout.tile_bytes // k.element_size())
    _put(tiles[..., :half], keys.permute(0, 2, 3, 1, 4))
    _put(tiles[..., half : 2 * half], values.permute(0, 3, 1, 4, 2))
    if layout.dtype is DType.I8:
        scales = torch.stack((k_scales, v_scales)).view(2, blocks, BLOCK_TOKENS, heads)
        _put(tiles[..., 2 * half :].view(torch.int16), scales.permute(1, 3, 0, 2))
    return tiles.view(torch.uint8)


def _side_by_side(layout: Layout) -> int:
    orders = layout.k_order, layout.v_order
    if layout.block_tokens != BLOCK_TOKENS or orders not in SIDE_BY_SIDE:
        raise ValueError(
            f"tiles of {layout.block_tokens} tokens in the orders {orders}; this packs tiles of "
            f"{BLOCK_TOKENS} in {list(SIDE_BY_SIDE)}"
        )
    return SIDE_BY_SIDE[orders]


def _put(part: torch.Tensor, ordered: torch.Tensor) -> None:
    part.view(ordered.shape).copy_(ordered)


def _quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., D] to int8 [..., D] and their scales' bits, int16 [...]: `quantise` of tile.c, step
    by step. The divisor is a tensor, since CUDA multiplies by the inverse of a number."""
    wide = rows.float()
    peak = wide.abs().amax(-1, keepdim=True)
    bits = ((peak / torch.full_like(peak, 127.0)).view(torch.int32) + 0xFFFF) >> 16
    bits = torch.where(peak < LEAST_MAGNITUDE, 0, bits)
    bits = torch.where(peak.isfinite(), bits, NAN_BITS)
    scale = (bits << 16).view(torch.float32)
    inverse = torch.where(scale > 0, scale.reciprocal(), 0.0)
    whole = torch.where(inverse > 0, wide * inverse, 0.0).round()
    return whole.to(torch.int8), bits.squeeze(-1).to(torch.int16)

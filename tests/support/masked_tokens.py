"""Whether a token's attention depends on later tokens, which it does not see: drafts that will be
rejected, or the rest of a prefill tile. Bit by bit, on the ISA path in use."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

from omniserve_native import BLOCK_TOKENS, Arena, ArenaConfig, AttendCall, DType

Floats = npt.NDArray[np.float32]
PRIORS = (0, 14, 15, 16, 62, 63, 100, 200)
Q_LENS = (2, 3, 8)
HEADS = (1, 4, 12)  # of queries, that share one kv head
SIZES = (24, 64, 128)
BAD = (1000.0, np.inf, np.nan)


def attended(dtype: DType, q: Floats, k: Floats, v: Floats) -> tuple[Floats, Floats]:
    """Outputs and log-sum-exp of the last len(q) tokens over one kv head."""
    (q_len, heads, size), tokens = q.shape, len(k)
    blocks = -(-tokens // BLOCK_TOKENS)
    o, lse = np.zeros_like(q), np.zeros(q.shape[:2], np.float32)
    with Arena(ArenaConfig(1, 1, size, blocks, 1, blocks, dtype)) as arena:
        sequence, prior = arena.open_sequence(), tokens - q_len
        arena.set_blocks(sequence, 0, range(blocks))
        addresses = k.ctypes.data, v.ctypes.data
        arena.append(sequence, 0, 0, tokens, *addresses, dtype=DType.F32)
        call = AttendCall(arena, heads, DType.F32, size**-0.5, 1)
        call.set_segments(np.array([sequence]), np.array([q_len]), np.array([prior]))
        call.set_strides(heads * size, size, size, heads * size)
        call.run(0, q.ctypes.data, 0, 0, o.ctypes.data, lse.ctypes.data)
    return o, lse


def changed_tokens(
    dtype: DType, prior: int, q_len: int, heads: int, size: int, bad: float
) -> list[int]:
    """Tokens whose results change when the last one's K and V do."""
    random = np.random.default_rng(prior)
    q = random.standard_normal((q_len, heads, size), np.float32)
    k, v = random.uniform(-1, 1, (2, prior + q_len, 1, size)).astype(np.float32)
    before = attended(dtype, q, k, v)
    k[-1], v[-1] = bad, bad
    after = attended(dtype, q, k, v)
    pairs = list(zip(before, after, strict=True))
    return [i for i in range(q_len - 1) if any((a[i] != b[i]).any() for a, b in pairs)]


def main() -> None:
    """Prints the cases in which an earlier token's results change."""
    for case in product(DType, PRIORS, Q_LENS, HEADS, SIZES, BAD):
        if changed := changed_tokens(*case):
            print(*case, "changes tokens", *changed)

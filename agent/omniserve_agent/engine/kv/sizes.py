"""How many bytes KV takes."""

from __future__ import annotations

from omniserve_agent.engine.kv.dtypes import NATIVE_DTYPES
from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.engine.model.model import Model
from omniserve_native import BLOCK_TOKENS, DType


def host_kv_type(config: EngineConfig, model: Model) -> DType:
    """How host KV is stored."""
    return DType.I8 if config.kv_cache_dtype == "int8" else NATIVE_DTYPES[model.dtype]


def token_bytes(config: EngineConfig, model: Model) -> float:
    """Bytes of one token's host KV over all layers."""
    return block_bytes(model, host_kv_type(config, model)) / BLOCK_TOKENS


def block_bytes(model: Model, kv_type: DType) -> int:
    """Bytes of one block over all layers."""
    shape = model.config
    return 2 * shape.layers * shape.kv_heads * BLOCK_TOKENS * kv_type.head_bytes(shape.head_size)

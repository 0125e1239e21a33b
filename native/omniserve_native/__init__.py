"""The native library: KV arenas, attention, host workers and the exchange (see `omniserve.h`)."""

from omniserve_native.arena import Arena, ArenaConfig, Layout
from omniserve_native.calls import AttendCall, LayerCall
from omniserve_native.dense import (
    DenseLayer,
    DenseLinear,
    DenseScratch,
    DenseShape,
    DenseWeights,
    Weight,
    dense_supported,
)
from omniserve_native.exchange import Exchange, ExchangeConfig, ExchangeStats
from omniserve_native.library import (
    BLOCK_TOKENS,
    MAX_GROUP,
    MAX_Q_LEN,
    DType,
    NativeError,
    Status,
    isa_name,
    library_file,
)
from omniserve_native.memory import ArenaMemory, Policy
from omniserve_native.workers import Workers, WorkersStats

__all__ = [
    "BLOCK_TOKENS",
    "MAX_GROUP",
    "MAX_Q_LEN",
    "Arena",
    "ArenaConfig",
    "ArenaMemory",
    "AttendCall",
    "DType",
    "DenseLayer",
    "DenseLinear",
    "DenseScratch",
    "DenseShape",
    "DenseWeights",
    "Exchange",
    "ExchangeConfig",
    "ExchangeStats",
    "LayerCall",
    "Layout",
    "NativeError",
    "Policy",
    "Status",
    "Weight",
    "Workers",
    "WorkersStats",
    "dense_supported",
    "isa_name",
    "library_file",
]

"""What was measured as a hardware profile, which `simulate` and `--device emulated:FILE` read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.profile import Profiled
from omniserve_agent.node.topology import listed
from omniserve_agent.scheduling.latency import FEATURES, LatencyModel
from omniserve_agent.simulation.emulated import device_label, shape_of
from omniserve_agent.simulation.hardware import BLOCK_TOKENS, ModelShape
from omniserve_agent.simulation.profile_file import (
    HostEntry,
    LatencyEntry,
    ModelEntry,
    ProfileFile,
    ShapeEntry,
)

KV_BYTES = 2  # of an element, in a profile
WIDE_DTYPES = {"float32": 4}


def profile_of(uri: str, profiled: Profiled) -> ProfileFile:
    """One model on this machine. KV of wider elements counts as if it were of two bytes, and the
    host as reading it accordingly slower, each byte costing the device more. NodeError."""
    config, measured = profiled.config, profiled.measured
    described = _config_json(config)
    widening = WIDE_DTYPES.get(_dtype(config, described), KV_BYTES) / KV_BYTES
    rate = measured.host_read_bytes_per_s
    host = HostEntry(
        kv_gib=config.host_kv_bytes / widening / 2**30,
        read_gbps=None if rate is None else rate / widening / 1e9,
    )
    name = uri.rstrip("/").rpartition("/")[2]
    latency = replace(measured.latency, host=widening * measured.latency.host)
    entry = _entry(config, shape_of(described), latency, widening)
    cores = f"cores: {len(config.device_cores)} device, {config.host_workers} host"
    if config.host_nodes:
        cores += f" on NUMA node {listed(config.host_nodes)}"
    return ProfileFile(
        local_host=host,
        models={name: entry},
        description=f"{uri} as measured by omniserve-agent profile.",
        measured_on=f"{device_label(config.device)}, {cores}",
    )


def _entry(
    config: EngineConfig, shape: ShapeEntry, latency: LatencyModel, widening: float
) -> ModelEntry:
    token_bytes = ModelShape("", **msgspec.structs.asdict(shape)).kv_bytes * widening
    return ModelEntry(
        shape=shape,
        latency=LatencyEntry(
            rows=list(latency.dense.rows),
            dense_s=list(latency.dense.seconds),
            head_rows=list(latency.head.rows),
            head_s=list(latency.head.seconds),
            **{name: getattr(latency, name) for name in FEATURES},
        ),
        device_blocks=max(1, int(config.device_kv_bytes / token_bytes / BLOCK_TOKENS)),
        slots=config.slots,
        max_device_rows=config.max_device_rows,
        join_rows=config.join_lanes,
    )


def _config_json(config: EngineConfig) -> dict[str, Any]:
    path = Path(config.model_dir) / "config.json"
    try:
        described: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise NodeError(f"{path}: {error}") from error
    return described


def _dtype(config: EngineConfig, described: dict[str, Any]) -> str:
    if config.dtype != "auto":
        return config.dtype
    return str(described.get("dtype") or described.get("torch_dtype") or "")

"""Latency profiles on disk: found by what they depend on, measured once."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import msgspec
import torch

from omniserve_agent.engine.curves import measured_rows
from omniserve_agent.engine.emulation.model import EmulatedModel
from omniserve_agent.engine.measured import Measured
from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.engine.model.model import Model
from omniserve_agent.engine.profiling import largest_iteration
from omniserve_crds.version import VERSION
from omniserve_native import isa_name

FORMAT = 4  # of the file; a new one makes old profiles unknown


def profile_key(config: EngineConfig, model: Model) -> str:
    """Names everything a profile depends on: model shape, device, dtype, cores, rows, ISA,
    torch."""
    parts = {
        "format": FORMAT,
        "omniserve": VERSION,
        "shape": asdict(model.config) | {"rope": ""},
        "device": _device_name(model),
        "dtype": str(model.dtype),
        "kv_cache_dtype": config.kv_cache_dtype,
        "attention": config.attention,
        "device_cores": len(config.device_cores),
        "host_workers": config.host_workers,
        **({"host_nodes": len(config.host_nodes)} if len(config.host_nodes) > 1 else {}),
        "rows": measured_rows(largest_iteration(config)),
        "isa": isa_name(),
        "torch": torch.__version__,
    }
    return hashlib.sha256(msgspec.json.encode(parts, enc_hook=str)).hexdigest()[:24]


def _device_name(model: Model) -> str:
    device = model.device
    if isinstance(model, EmulatedModel):
        emulated = model.emulation.device
        return f"emulated {emulated.profile} {emulated.digest}"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with open("/proc/cpuinfo") as lines:
        return next((line.strip() for line in lines if line.startswith("model name")), "cpu")


def load_profile(directory: str, key: str) -> Measured | None:
    """The profile, or None where there is none that can be read."""
    path = Path(directory) / f"{key}.json"
    if not directory or not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measured)
    except msgspec.MsgspecError:
        return None  # cut short or of another version: measured again


def save_profile(directory: str, key: str, found: Measured) -> None:
    """Keep it, whole or not at all."""
    if not directory:
        return
    Path(directory).mkdir(parents=True, exist_ok=True)
    unfinished = Path(directory) / f".{key}.{os.getpid()}"
    unfinished.write_bytes(msgspec.json.encode(found))
    unfinished.replace(Path(directory) / f"{key}.json")

"""Latency profiles on disk: found by what they depend on, measured once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec
import torch

from omniserve_agent.engine.emulation.model import EmulatedModel
from omniserve_agent.engine.kv.dtypes import NATIVE_DTYPES
from omniserve_agent.engine.kv.sizes import block_bytes
from omniserve_agent.engine.measured import Measured
from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.engine.model.model import Model
from omniserve_agent.scheduling import latency
from omniserve_crds.version import VERSION
from omniserve_native import isa_name, library_file

FORMAT = 4  # of the file; a new one makes old profiles unknown
DEVICE_BLOCKS, HOST_BLOCKS = 256, 1024  # of the engine that is measured, at most
# What figures do not depend on, for the engine that is measured has it thus whatever is configured.
# A new field of EngineConfig is taken over and is part of the key unless it is named here.
UNMEASURED: dict[str, object] = {
    "model_dir": "",  # its shape, dtype and positions are in the key by themselves
    "max_model_len": None,
    "be_device_residency": True,
    "max_waiting": 256,
    "pipeline_depth": 0,
    "without": [],
    "policy": "fixed_caps",
    "admission": "off",
    "profile_dir": "",
    "to_engine": "",
    "from_engine": "",
    "stats_interval_s": 0.5,
}


def measured_engine(config: EngineConfig, model: Model) -> EngineConfig:
    """The small engine whose iterations are measured for `config`."""
    block = block_bytes(model, NATIVE_DTYPES[model.dtype])
    return msgspec.structs.replace(
        config,
        device_kv_bytes=min(config.device_kv_bytes, DEVICE_BLOCKS * block),
        host_kv_bytes=min(config.host_kv_bytes, HOST_BLOCKS * block),
        **UNMEASURED,
    )


def profile_key(config: EngineConfig, model: Model) -> str:
    """Names everything a profile depends on: the engine that is measured (cores, workers, rows,
    lanes, KV), model shape, device, dtype, ISA, torch, and the code."""
    engine = msgspec.to_builtins(measured_engine(config, model))
    parts = {
        "format": FORMAT,
        "omniserve": VERSION,
        "code": code_digest(),
        "shape": asdict(model.config) | {"rope": ""},
        "positions": model.positions,
        "engine": engine | {"device": _device_name(model), "dtype": str(model.dtype)},
        "isa": isa_name(),
        "torch": torch.__version__,
    }
    return hashlib.sha256(msgspec.json.encode(parts, enc_hook=str)).hexdigest()[:24]


def code_digest() -> str:
    """Of what runs while a profile is measured: the engine, the fit and the native library."""
    found = hashlib.sha256()
    for path in _code():
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _code() -> Iterator[Path]:
    yield library_file()
    yield Path(latency.__file__)
    engine = Path(__file__).parent
    yield from sorted(path for path in engine.rglob("*") if path.suffix in (".py", ".so"))


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

"""Devices to emulate: a profile's figures for a model of the same shape. Pure.

`emulated:NAME` names a profile of this package, `emulated:PATH.json` a file. Beside what the
simulator reads, a model's entry may hold `noise` (of an iteration's time, standard deviation;
0 unless given), `seed` of that noise, and `link_gbps` of the way between host and device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omniserve_agent.simulation.hardware import BLOCK_TOKENS, Hardware, hardware, load_profile

PREFIX = "emulated:"
LINK_GBPS = 200.0  # of 25 GB/s: PCIe 4.0 × 16


@dataclass(frozen=True, slots=True)
class Heads:
    """What a model and a profile's entry must have in common."""

    layers: int
    q_heads: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True, slots=True)
class EmulatedDevice:
    """One model on a profile's device."""

    profile: str
    hardware: Hardware
    noise: float
    seed: int
    link_bytes_per_s: float
    digest: str  # of the profile's contents

    @property
    def token_copy_s(self) -> float:
        """KV of one token between device and host, all layers."""
        return self.hardware.model.kv_bytes / self.link_bytes_per_s

    @property
    def kv_bytes(self) -> int:
        """KV that the device holds."""
        blocks = self.hardware.device_blocks
        return blocks * self.hardware.model.kv_bytes * BLOCK_TOKENS


def profile_name(device: str) -> str | None:
    """The profile that a device string names; None: another kind of device."""
    return device.removeprefix(PREFIX) if device.startswith(PREFIX) else None


def check_profile(device: str) -> None:
    """ValueError that names the profiles there are, unless this device has one."""
    load_profile(device.removeprefix(PREFIX))


def emulated_device(device: str, heads: Heads) -> EmulatedDevice:
    """The device for a model of these heads. ValueError says which the profile has."""
    name = device.removeprefix(PREFIX)
    try:
        return _device(name, heads)
    except (KeyError, TypeError) as error:
        raise ValueError(f"profile {name} cannot be used: {error!r} is missing or wrong") from error


def _device(name: str, heads: Heads) -> EmulatedDevice:
    profile = load_profile(name)
    for model, entry in profile["models"].items():
        if _heads(entry) == heads:
            return EmulatedDevice(
                profile=name,
                hardware=hardware(name, model),
                noise=entry.get("noise", 0.0),
                seed=entry.get("seed", 0),
                link_bytes_per_s=entry.get("link_gbps", LINK_GBPS) * 1e9 / 8,
                digest=hashlib.sha256(json.dumps(profile).encode()).hexdigest()[:16],
            )
    known = "; ".join(f"{model}: {_heads(entry)}" for model, entry in profile["models"].items())
    raise ValueError(f"profile {name} knows no model with {heads}; it has {known}")


def heads_of(config: Mapping[str, Any]) -> Heads:
    """Of a model's `config.json`. KeyError names what it lacks."""
    q_heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return Heads(
        layers=config["num_hidden_layers"],
        q_heads=q_heads,
        kv_heads=config.get("num_key_value_heads") or q_heads,
        head_size=config.get("head_dim") or hidden // q_heads,
    )


def _heads(entry: dict[str, Any]) -> Heads:
    shape = entry["shape"]
    return Heads(shape["layers"], shape["q_heads"], shape["kv_heads"], shape["head_size"])

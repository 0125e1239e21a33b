"""Devices to emulate: a profile's figures for a model of the same shape. Pure.

`emulated:NAME` names a profile of this package, `emulated:PATH.json` a file. Only here a model's
`noise` and its `seed` count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omniserve_agent.simulation.hardware import BLOCK_TOKENS, Hardware, hardware
from omniserve_agent.simulation.profile_file import (
    ModelEntry,
    ShapeEntry,
    load_profile,
    profile_path,
)

PREFIX = "emulated:"
HOST_READ_GBPS = 1.0  # of the profile's host: the real one takes its place


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


def device_label(device: str) -> str:
    """A device in words, so that nobody takes an emulated one for a real one."""
    return f"{'device' if profile_name(device) is None else 'emulated device'} {device}"


def check_profile(device: str) -> None:
    """ValueError that names the field that is wrong or the profiles there are, unless this device
    has one."""
    load_profile(device.removeprefix(PREFIX))


def emulated_device(device: str, heads: Heads) -> EmulatedDevice:
    """The device for a model of these heads. ValueError says which the profile has."""
    name = device.removeprefix(PREFIX)
    profile = load_profile(name)
    for model, entry in profile.models.items():
        if _heads(entry) == heads:
            return EmulatedDevice(
                profile=name,
                hardware=hardware(name, model, host_read_gbps=HOST_READ_GBPS),
                noise=entry.noise,
                seed=entry.seed,
                link_bytes_per_s=entry.link_gbps * 1e9 / 8,
                digest=hashlib.sha256(profile_path(name).read_bytes()).hexdigest()[:16],
            )
    known = "; ".join(f"{model}: {_heads(entry)}" for model, entry in profile.models.items())
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


def shape_of(config: Mapping[str, Any]) -> ShapeEntry:
    """The same for all of a profile's shape."""
    heads = heads_of(config)
    return ShapeEntry(
        layers=heads.layers,
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        q_heads=heads.q_heads,
        kv_heads=heads.kv_heads,
        head_size=heads.head_size,
        vocab=config["vocab_size"],
    )


def _heads(entry: ModelEntry) -> Heads:
    shape = entry.shape
    return Heads(shape.layers, shape.q_heads, shape.kv_heads, shape.head_size)

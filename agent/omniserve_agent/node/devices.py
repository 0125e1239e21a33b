"""Which device each engine gets. torch is asked in a child process, so that none is loaded here."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.process import end, spawn
from omniserve_agent.node.topology import SYSFS, gpu_node
from omniserve_agent.simulation.emulated import emulated_device, heads_of, profile_name

_PROBE = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
def bus_id(index):
    of = torch.cuda.get_device_properties(index)
    try:
        return f"{of.pci_domain_id:04x}:{of.pci_bus_id:02x}:{of.pci_device_id:02x}.0"
    except AttributeError:  # an older torch
        return ""
print(json.dumps([
    (*torch.cuda.mem_get_info(index), torch.cuda.get_device_name(index), bus_id(index))
    for index in range(count)
]))
"""
_PROBE_S = 120.0


class Gpu(msgspec.Struct, frozen=True, array_like=True):
    """A GPU as its driver describes it."""

    free_bytes: int
    total_bytes: int
    name: str
    pci_bus_id: str = ""
    numa_node: int | None = None


@dataclass(frozen=True)
class Device:
    """`cpu`, `cuda:N` with its free bytes, or `emulated:PROFILE`."""

    name: str
    free_bytes: int | None = None
    kv_bytes: int | None = None  # of an emulated device: KV of its model, as the profile has it
    numa_node: int | None = None  # of a GPU, where the machine tells it

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.free_bytes is not None

    @property
    def emulated(self) -> bool:
        """Whether it only takes time: no weights, no KV, no work for the cores."""
        return profile_name(self.name) is not None


def pick(wanted: str, found: Sequence[Gpu], engines: int) -> tuple[Device, ...]:
    """One device per engine; NodeError where GPUs lack. A CPU device is divided by cores, and of an
    emulated one there is any number."""
    if profile_name(wanted) is not None:
        return (Device(wanted),) * engines
    if wanted == "cpu" or (wanted == "auto" and not found):
        return (Device("cpu"),) * engines
    gpus = [
        Device(f"cuda:{index}", gpu.free_bytes, numa_node=gpu.numa_node)
        for index, gpu in enumerate(found)
    ]
    if wanted.startswith("cuda:"):
        gpus = [gpu for gpu in gpus if gpu.name == f"cuda:{int(wanted[5:])}"]
    if not found and engines:
        raise NodeError(f"--device {wanted}: no CUDA device was found here; use auto or cpu")
    if len(gpus) < engines:
        raise NodeError(
            f"--device {wanted}: {engines} engines (one per distinct spec.model) need a GPU each "
            f"and {len(gpus)} of the {len(found)} found can be used; "
            "use fewer models or --device cpu"
        )
    return tuple(gpus[:engines])


def holding(device: Device, model_dir: Path) -> Device:
    """The device with what it holds of this model's KV; NodeError where its profile lacks it."""
    if not device.emulated:
        return device
    try:
        heads = heads_of(json.loads((model_dir / "config.json").read_text()))
        return replace(device, kv_bytes=emulated_device(device.name, heads).kv_bytes)
    except (OSError, KeyError, ValueError) as error:
        raise NodeError(f"--device {device.name}: {error}") from error


async def list_gpus(
    wanted: str, device_files: Path = Path("/dev"), sysfs: Path = SYSFS
) -> list[Gpu]:
    """Each usable GPU; empty without the driver's files or where none is wanted."""
    if wanted == "cpu" or profile_name(wanted) is not None:
        return []
    if not any(device_files.glob("nvidia[0-9]*")):
        return []
    process = await spawn([sys.executable, "-c", _PROBE], stdout=PIPE)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _PROBE_S)
        gpus = msgspec.json.decode(output, type=list[Gpu])
        return [
            msgspec.structs.replace(gpu, numa_node=gpu_node(gpu.pci_bus_id, sysfs)) for gpu in gpus
        ]
    except (TimeoutError, msgspec.DecodeError) as error:
        if wanted == "auto":
            return []
        raise NodeError(
            f"--device {wanted}: torch did not list the GPUs; check the driver or use --device cpu"
        ) from error
    finally:
        await end(process)

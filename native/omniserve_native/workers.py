"""Host attention workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omniserve_native.library import Closing, Pointer, checked, created, ffi, lib


@dataclass(frozen=True, slots=True)
class WorkersStats:
    """Counters since the start; `busy_ns` is summed over threads."""

    busy_ns: int
    items: int
    kv_bytes: int
    sleeps: int
    taken_ns: int  # when the last item was taken, by the monotonic clock; 0: none yet
    running: int
    spin_ns: int  # as asked for, or 0 where workers and creator have one core between them


class Workers(Closing):
    """Persistent threads that run attention items. `cores`: one per thread, or None: not pinned.
    `nodes`: the NUMA nodes that the memory they read should lie on; empty: as it is touched.

    Raises NativeError when a core may not be used or a thread cannot be started.
    """

    def __init__(
        self,
        count: int,
        cores: Sequence[int] | None = None,
        spin_ns: int = 50_000,
        batch_priority: bool = False,
        nodes: Sequence[int] = (),
    ) -> None:
        self._handle: Pointer = ffi.NULL
        if cores is not None and len(cores) != count:
            raise ValueError(
                f"cores has {len(cores)} entries; it must have one per thread: {count}"
            )
        config = ffi.new("os_workers_config *")
        pinned = ffi.new("int32_t[]", list(cores)) if cores is not None else ffi.NULL
        config.count, config.cores = count, pinned
        config.spin_ns, config.batch_priority = spin_ns, batch_priority
        numbers = ffi.new("int32_t[]", list(nodes))
        config.node_count, config.nodes = len(numbers), numbers
        self._handle = created(lib.os_workers_create(config))
        self.count = count

    @property
    def handle(self) -> Pointer:
        """The `os_workers *`."""
        if self._handle == ffi.NULL:
            raise ValueError("these workers are closed")
        return self._handle

    def pause(self) -> None:
        """Closes the gate: afterwards no worker is inside an item and none takes one."""
        checked(lib.os_workers_pause(self.handle))

    def resume(self) -> None:
        """Opens the gate."""
        checked(lib.os_workers_resume(self.handle))

    def stats(self) -> WorkersStats:
        """Counters since the start."""
        out = ffi.new("os_workers_stats *")
        checked(lib.os_workers_get_stats(self.handle, out))
        return WorkersStats(*(getattr(out, name) for name in WorkersStats.__dataclass_fields__))

    def close(self) -> None:
        """Stops and joins the threads. Exchanges that use them must be closed before."""
        handle, self._handle = self._handle, ffi.NULL
        lib.os_workers_destroy(handle)

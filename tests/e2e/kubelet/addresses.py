"""Pod addresses: 10.244.x.y/32 on `lo`, each given to one pod at a time."""

from __future__ import annotations

import subprocess
import threading

IP_TIMEOUT_S = 10


class AddressPool:
    """Addresses of 10.244.`third`.0/24; thread-safe; `release_all` leaves none behind."""

    def __init__(self, third: int) -> None:
        self._prefix = f"10.244.{third}."
        self._lock = threading.Lock()
        self._used: set[str] = set()
        self._next = 0

    def allocate(self) -> str:
        """Puts one more address on `lo`; addresses come round again as late as possible."""
        with self._lock:
            for _ in range(250):
                self._next = self._next % 250 + 1
                address = f"{self._prefix}{self._next}"
                if address not in self._used:
                    self._used.add(address)
                    break
            else:
                raise RuntimeError(f"all addresses of {self._prefix}0/24 are in use")
        _ip("add", address)
        return address

    def release(self, address: str) -> None:
        """Takes it off `lo`."""
        with self._lock:
            if address not in self._used:
                return
            self._used.remove(address)
        _ip("del", address)

    def release_all(self) -> None:
        for address in sorted(self._used):
            self.release(address)


def _ip(verb: str, address: str) -> None:
    subprocess.run(
        ["ip", "addr", verb, f"{address}/32", "dev", "lo"],
        check=True,
        capture_output=True,
        timeout=IP_TIMEOUT_S,
    )

"""The node's cache of prepared models: room is made before one comes in, what is used stays.

One model is prepared at a time: two at once would each count on the same free bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from omniserve_agent.node.cluster.eviction import CachedModel, evict
from omniserve_agent.node.cluster.pins import Pins, alone
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.memory import in_mib
from omniserve_agent.node.model_store import ModelStore, Progress

_PIN_RETRIES = 300
_PIN_RETRY_S = 0.2


@dataclass
class ModelCache:
    """Models under `store.cache_dir`/models, and who uses them."""

    store: ModelStore
    limit_bytes: int | None = None  # of all models together; None: as much as the disk has
    pins: Pins = field(default_factory=Pins)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def acquire(self, uri: str, progress: Progress, token: str | None = None) -> Path:
        """The model's directory, pinned until `release`. NodeError with figures where its disk has
        no room even without the models that nobody uses."""
        if self._turn.locked():
            progress("waiting for another model", 0.0)
        async with self._turn:
            place = await self.store.inspect(uri, token)
            if not self._is_cached(place.model_dir):
                return await self.store.prepare(uri, progress, token)
            await self._pin(place.model_dir)
            try:
                if not place.model_dir.is_dir():
                    await asyncio.to_thread(self._make_room, uri, place.needed_bytes)
                model_dir = await self.store.prepare(uri, progress, token)
                os.utime(model_dir)
                return model_dir
            except BaseException:
                self.pins.release(place.model_dir)
                raise

    def release(self, model_dir: Path) -> None:
        """The model is not used any more; it stays until its room is needed."""
        if self.pins.holds(model_dir):
            with contextlib.suppress(OSError):
                os.utime(model_dir)
            self.pins.release(model_dir)

    @property
    def _models_dir(self) -> Path:
        return self.store.cache_dir / "models"

    def _is_cached(self, model_dir: Path) -> bool:
        """False: it is used where its owner put it."""
        return model_dir.parent == self._models_dir

    async def _pin(self, model_dir: Path) -> None:
        self._models_dir.mkdir(parents=True, exist_ok=True)
        for _ in range(_PIN_RETRIES):
            if self.pins.hold(model_dir):
                return
            await asyncio.sleep(_PIN_RETRY_S)
        limit_s = _PIN_RETRIES * _PIN_RETRY_S
        raise NodeError(f"{model_dir} has been locked by another process for {limit_s:.0f} s")

    def _make_room(self, uri: str, needed_bytes: int) -> None:
        """Evict; NodeError where that cannot be enough."""
        models = list(self._models())
        free_bytes = self._free_bytes(models)
        eviction = evict(models, needed_bytes, free_bytes)
        if eviction.missing_bytes:
            raise NodeError(
                f"model {uri} needs {in_mib(needed_bytes)} in {self._models_dir}, where "
                f"{in_mib(free_bytes)} are free; {in_mib(eviction.missing_bytes)} are missing even "
                "without the models that are not in use; give the cache more room (--cache-size)"
            )
        for name in eviction.names:
            self._evict(self._models_dir / name)

    def _free_bytes(self, models: Sequence[CachedModel]) -> int:
        """What another model may take without anybody leaving."""
        on_disk = shutil.disk_usage(self._models_dir).free
        if self.limit_bytes is None:
            return on_disk
        used_bytes = sum(model.size_bytes for model in models)
        return max(0, min(on_disk, self.limit_bytes - used_bytes))

    def _models(self) -> Iterator[CachedModel]:
        for path in self._models_dir.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                size_bytes = sum(file.stat().st_size for file in path.glob("*") if file.is_file())
                used_s = path.stat().st_mtime
                with alone(path) as unused:
                    yield CachedModel(path.name, size_bytes, used_s, in_use=not unused)

    def _evict(self, model_dir: Path) -> None:
        """Out of sight first, so that no reader finds half a model."""
        with alone(model_dir) as unused:
            if not unused:
                return  # since a moment; preparing checks the room again and says what lacks
            grave = model_dir.with_name(f".{model_dir.name}.evicted")
            shutil.rmtree(grave, ignore_errors=True)
            model_dir.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)
        structlog.get_logger().info("model evicted from the cache", model=model_dir.name)

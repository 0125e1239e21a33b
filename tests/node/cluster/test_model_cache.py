"""The node's model cache: room is made, what is used stays."""

import asyncio
import json
import os
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from omniserve_agent.node.cluster import model_cache
from omniserve_agent.node.cluster.model_cache import ModelCache
from omniserve_agent.node.cluster.pins import Pins, alone
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.model_store import ModelStore

# "cached:///NAME" takes 100 bytes in the cache; "place:///DIR" is used where it is.
PREPARE = """
import json, pathlib, sys
uri = sys.argv[sys.argv.index("--uri") + 1]
cache = pathlib.Path(sys.argv[sys.argv.index("--cache-dir") + 1])
kind, _, name = uri.partition(":///")
target = cache / "models" / name if kind == "cached" else pathlib.Path("/" + name)
if kind == "cached" and "--inspect" not in sys.argv and not target.exists():
    target.mkdir(parents=True)
    (target / "model.safetensors").write_bytes(bytes(100))
needed = 0 if target.exists() else 100
print(json.dumps({"model_dir": str(target), "needed_bytes": needed}))
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache on a disk of 250 bytes."""
    program = tmp_path / "prepare.py"
    program.write_text(PREPARE)
    models = tmp_path / "cache" / "models"

    def usage(path):
        used = sum(file.stat().st_size for file in models.glob("[!.]*/*"))
        return namedtuple("usage", "total used free")(250, used, 250 - used)

    monkeypatch.setattr(model_cache.shutil, "disk_usage", usage)
    return ModelCache(ModelStore(tmp_path / "cache", command=(sys.executable, str(program))))


async def acquire(cache, name, used_s=None):
    path = await cache.acquire(f"cached:///{name}", lambda *_: None)
    if used_s is not None:
        cache.release(path)
        os.utime(path, (used_s, used_s))
    return path


def names(cache):
    return sorted(p.name for p in (cache.store.cache_dir / "models").glob("[!.]*") if p.is_dir())


def test_the_least_recently_used_model_makes_room(run, cache):
    async def scenario():
        await acquire(cache, "a", used_s=10)
        await acquire(cache, "b", used_s=20)
        await acquire(cache, "a", used_s=30)
        await acquire(cache, "c")

    run(scenario())
    assert names(cache) == ["a", "c"]


def test_a_model_in_use_is_never_evicted(run, cache):
    async def scenario():
        first = await acquire(cache, "a")
        os.utime(first, (0, 0))
        await acquire(cache, "b", used_s=20)
        second = await acquire(cache, "c")
        assert names(cache) == ["a", "c"]
        with pytest.raises(NodeError, match="1 MiB are missing even without the models that are"):
            await acquire(cache, "d")
        assert names(cache) == ["a", "c"]
        cache.release(second)
        await acquire(cache, "d")
        assert names(cache) == ["a", "d"]

    run(scenario())


def test_a_limit_below_the_disk_is_kept(run, cache):
    cache.limit_bytes = 150

    async def scenario():
        await acquire(cache, "a", used_s=10)
        await acquire(cache, "b")
        assert names(cache) == ["b"]
        with pytest.raises(NodeError, match=r"give the cache more room \(--cache-size\)"):
            await acquire(cache, "c")

    run(scenario())


def test_a_model_that_another_agent_uses_is_not_evicted(run, cache):
    async def scenario():
        await acquire(cache, "a", used_s=10)
        await acquire(cache, "b", used_s=20)
        theirs = Pins()
        theirs.hold(cache.store.cache_dir / "models" / "a")
        await acquire(cache, "c")
        assert names(cache) == ["a", "c"]

    run(scenario())


def test_a_model_used_twice_is_released_twice(run, cache):
    async def scenario():
        path = await acquire(cache, "a")
        await acquire(cache, "a")
        cache.release(path)
        with alone(path) as unused:
            assert not unused
        cache.release(path)
        with alone(path) as unused:
            assert unused

    run(scenario())


def test_a_model_that_is_used_in_place_needs_no_room(run, cache, tmp_path):
    path = run(cache.acquire(f"place://{tmp_path}", lambda *_: None))
    assert path == tmp_path
    cache.release(path)


def test_a_failure_releases_what_was_pinned(run, cache):
    async def scenario():
        task = asyncio.create_task(acquire(cache, "a"))
        while not cache.pins.holds(cache.store.cache_dir / "models" / "a"):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait({task})

    run(scenario())
    assert not cache.pins.holds(cache.store.cache_dir / "models" / "a")


def test_one_waits_while_another_is_evicted(run, cache):
    async def scenario():
        path = await acquire(cache, "a", used_s=1)
        with alone(path):
            task = asyncio.create_task(acquire(cache, "a"))
            done, _ = await asyncio.wait({task}, timeout=0.5)
            assert not done
        assert await task == path

    run(scenario())


def test_the_line_of_an_inspection_is_understood(run, cache):
    place = run(cache.store.inspect("cached:///x"))
    assert place.needed_bytes == 100
    assert place.model_dir == Path(cache.store.cache_dir / "models" / "x")
    assert json.dumps(names(cache)) == "[]"

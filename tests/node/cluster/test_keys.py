"""Mirrored keys: read, kept while the server is away, withdrawn when the Secret is gone."""

import asyncio

import pytest

from omniserve_agent.node.cluster.api import ApiError
from omniserve_agent.node.cluster.keys import KeyRing, keys_in


class Secrets:
    """An API server with Secrets only."""

    def __init__(self):
        self.values = {}
        self.away = False
        self.reads = 0

    async def read_secret(self, name):
        self.reads += 1
        if self.away:
            raise ApiError("away")
        return self.values.get(name)


@pytest.fixture
def ring():
    secrets = Secrets()
    return secrets, KeyRing(secrets, lambda: None, reread_s=600, retry_s=600)


async def reread(secrets, ring):
    before = secrets.reads
    task = asyncio.create_task(ring.run())
    while secrets.reads == before:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()


def test_keys_are_read_kept_and_withdrawn(run, ring):
    secrets, keys = ring
    keys.want(["svc-1"])
    assert keys.keys("svc-1") == frozenset()
    assert keys.problem("svc-1") == "Secret svc-1 has not been read yet"

    async def scenario():
        await reread(secrets, keys)
        assert "is not there; the operator mirrors it" in keys.problem("svc-1")
        secrets.values["svc-1"] = {"a": b"one\n two \n", "b": b"three"}
        await reread(secrets, keys)
        assert keys.keys("svc-1") == {"one", "two", "three"}
        assert keys.problem("svc-1") is None
        secrets.away = True
        await reread(secrets, keys)
        assert keys.keys("svc-1") == {"one", "two", "three"}
        secrets.away = False
        secrets.values["svc-1"] = {"a": b"four"}
        await reread(secrets, keys)
        assert keys.keys("svc-1") == {"four"}
        del secrets.values["svc-1"]
        await reread(secrets, keys)
        assert keys.keys("svc-1") == frozenset()
        assert "is not there" in keys.problem("svc-1")

    run(scenario())


def test_a_server_that_was_never_there_is_named(run, ring):
    secrets, keys = ring
    secrets.away = True
    keys.want(["svc-1"])
    run(reread(secrets, keys))
    assert keys.problem("svc-1") == "Secret svc-1: away"


def test_other_wishes_are_read_at_once_and_old_ones_forgotten(run):
    secrets = Secrets()
    secrets.values = {"a": {"k": b"1"}, "b": {"k": b"2"}}
    keys = KeyRing(secrets, lambda: None, reread_s=600, retry_s=600)

    async def scenario():
        task = asyncio.create_task(keys.run())
        keys.want(["a"])
        while not keys.keys("a"):
            await asyncio.sleep(0.001)
        keys.want(["b"])
        while not keys.keys("b"):
            await asyncio.sleep(0.001)
        task.cancel()

    run(scenario())
    assert keys.keys("a") == frozenset()


def test_services_without_a_secret_have_no_problem(ring):
    _, keys = ring
    assert keys.keys(None) == frozenset()
    assert keys.problem(None) is None


def test_only_lines_of_text_are_keys():
    assert keys_in({"a": b"\xff\xfe", "b": b"\n\n  \n", "c": b"x\r\ny"}) == {"x", "y"}

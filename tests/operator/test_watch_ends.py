"""A watch that Kopf gives up ends the operator's process: it must not go on with what it knew."""

import asyncio
import os
import socket
import sys

from omniserve_operator import cli
from support.empty_api_server import WATCHED, EmptyApiServer

START_S = 60
END_S = 60  # the process that stays does so for ten minutes


async def operator(server, tmp_path):
    place = tmp_path / "config"
    place.write_text(server.kubeconfig)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from omniserve_operator.cli import main; main()"),
        *("run", "--namespace", "release", "--port", str(free_port())),
        env={**os.environ, "KUBECONFIG": str(place)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def until(met, what):
    async with asyncio.timeout(START_S):
        while not met():
            await asyncio.sleep(0.05)
    assert met(), what


def ended(tmp_path, happens):
    """(exit code, errors, Lease) of an operator to which `happens(server, process)` once it watches
    everything."""

    async def scene():
        server = EmptyApiServer()
        await server.up()
        process = await operator(server, tmp_path)
        try:
            await until(lambda: server.watching == WATCHED and server.lease, "all are watched")
            await happens(server, process)
            async with asyncio.timeout(END_S):
                _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
            await server.down()
        return process.returncode, errors.decode(), server.lease

    return asyncio.run(scene())


def test_a_kind_that_is_gone_while_others_are_asked_again_ends_the_process(tmp_path):
    """As an API server answers that comes back: 404 for one kind, 503 for another."""

    async def happens(server, process):
        server.break_watches(dict.fromkeys(WATCHED, 503) | {"servingnodes": 404})

    code, errors, lease = ended(tmp_path, happens)
    assert code == cli.EXIT_UNREACHABLE
    said = "omniserve-operator: a watch ended"
    assert any(line.startswith(said) for line in errors.splitlines()), errors
    assert lease["spec"].get("holderIdentity") is None


def test_a_signal_amid_a_pass_is_a_clean_end(tmp_path):
    """The pass's own calls are cut off, the Lease is given up, and the code is 0."""

    async def happens(server, process):
        server.hold_lists()
        await until(lambda: server.held, "a list is under way")
        process.terminate()

    code, errors, lease = ended(tmp_path, happens)
    assert code == 0, errors
    assert "Traceback" not in errors
    assert lease["spec"].get("holderIdentity") is None

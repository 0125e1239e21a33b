"""Children die with their parent and are out of reach of the terminal's signals."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

from omniserve_agent.node.process import end, ended_how, spawn

PARENT = """
import asyncio, sys, time
from omniserve_agent.node.process import spawn
process = asyncio.run(spawn([sys.executable, "-c", "import time; time.sleep(600)"]))
print(process.pid, flush=True)
time.sleep(600)
"""


def state(pid):
    """The process's state letter, or None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None


def wait_until_gone(pid):
    deadline = time.monotonic() + 30
    while state(pid) not in (None, "Z"):
        assert time.monotonic() < deadline, f"process {pid} survived its parent"
        time.sleep(0.01)


def test_a_child_dies_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        child = int(parent.stdout.readline())
        assert state(child) is not None
        parent.kill()
    wait_until_gone(child)


def test_a_child_leads_its_own_group_and_gets_the_cores(run):
    core = min(os.sched_getaffinity(0))

    async def scenario():
        program = "import os; print(os.getpid(), os.getpgid(0), os.sched_getaffinity(0))"
        process = await spawn(
            [sys.executable, "-c", program], cores=[core], stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        return output.decode().split(maxsplit=2)

    pid, group, cores = run(scenario())
    assert pid == group
    assert cores.strip() == str({core})


def test_end_kills_what_does_not_leave(run):
    async def scenario():
        process = await spawn([sys.executable, "-c", "import time; time.sleep(600)"])
        await end(process)
        return process.returncode

    assert ended_how(run(scenario())) == "was killed by SIGKILL"


@pytest.mark.parametrize(
    ("program", "cores", "line"),
    [
        ([sys.executable, "-c", ""], [4095], "cores 4095: Invalid argument; this process may use"),
        (["/no/such/program"], [], "/no/such/program: No such file or directory"),
    ],
)
def test_what_cannot_be_started_is_told_apart_by_its_exit_code(run, program, cores, line):
    async def scenario():
        process = await spawn(program, cores=cores, stderr=asyncio.subprocess.PIPE)
        _, errors = await process.communicate()
        return process.returncode, errors.decode()

    code, errors = run(scenario())
    assert (code, errors.count("\n")) == (2, 1)
    assert line in errors


@pytest.mark.parametrize(
    ("returncode", "text"), [(3, "exited with code 3"), (-15, "was killed by SIGTERM")]
)
def test_exit_statuses_in_words(returncode, text):
    assert ended_how(returncode) == text

"""Workers on cores that they share with others stand back."""

import os
import signal
import time
from pathlib import Path

import pytest

from omniserve_native import Workers


def threads() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def priority(thread: int) -> tuple[int, int]:
    return os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)


@pytest.mark.parametrize("shared", [True, False])
def test_priority_of_a_worker(shared: bool) -> None:
    before = threads()
    with Workers(1, batch_priority=shared) as workers:
        until = time.monotonic() + 10
        while not workers.stats().running and time.monotonic() < until:
            time.sleep(0.001)
        (thread,) = threads() - before
        assert priority(thread) == ((os.SCHED_BATCH, 5) if shared else priority(os.getpid()))


def test_a_forked_child_closes_workers_that_it_does_not_have() -> None:
    with Workers(2) as workers:
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that waits for threads of its parent
            workers.close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0

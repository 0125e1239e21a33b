"""A process beside the benchmark that answers lines of JSON with lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
END_TIMEOUT_S = 30


class PeerFailedError(Exception):
    """A peer could not be started or gave no answer; one line for the result file."""


class Asked:
    """Runs `command` on `cores`; what else it says goes to `log`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        cores: list[int],
        settings: dict[str, str],
        log: Path,
    ) -> None:
        self._name, self._log = name, log.open("w")
        self._process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *command],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, what: dict[str, Any]) -> Answer:
        """The answer. Raises PeerFailedError."""
        streams = self._process.stdin, self._process.stdout
        if streams[0] is None or streams[1] is None:
            raise PeerFailedError(f"{self._name} has no pipes")
        try:
            print(json.dumps(what), file=streams[0], flush=True)
            answer: Answer = json.loads(streams[1].readline())
        except (OSError, ValueError):
            raise PeerFailedError(
                f"{self._name} ended; its words are in {self._log.name}"
            ) from None
        if "error" in answer:
            raise PeerFailedError(f"{self._name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=END_TIMEOUT_S)
        self._log.close()


def serve(answer: Callable[[Answer], Answer]) -> None:
    """The other side: answers until stdin ends. Whatever else writes to stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            given = answer(json.loads(line))
        except Exception as error:  # whatever it is, the other side decides
            given = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(given), file=answers, flush=True)

"""One container of a pod: a local process with the container's files, user and environment."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from e2e.harness.binaries import ROOT
from e2e.kubelet.volumes import Mount

_SCRIPT = Path(__file__).with_name("pod_root.sh")
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib64", "/usr", "/etc", "/opt")
KILL_TIMEOUT_S = 20


@dataclass(frozen=True)
class Files:
    """What the container sees and who it is."""

    hostname: str
    mounts: Sequence[Mount]
    system: Sequence[str]
    workdir: str = "/"
    user: tuple[int, int] | None = None  # uid, gid
    read_only_root: bool = False


def image_folders(python: Path) -> tuple[str, ...]:
    """What stands for the image: the system, the checkout, and the interpreter of the venv."""
    system = [path for path in _SYSTEM if Path(path).exists()]
    venv = python.parent.parent
    own = {str(ROOT), str(venv), sys.base_prefix}
    return (*system, *sorted(own - {"/usr"}))


class Container:
    """Starts, watches and ends one process; a restart is a new Container."""

    def __init__(self, folder: Path, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._folder = folder
        self._argv = list(argv)
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0

    def start(self, files: Files, log: Path) -> None:
        """Enters the container's namespaces and starts the command."""
        root = self._folder / "root"
        root.mkdir(parents=True, exist_ok=True)
        settings = self._folder / "settings"
        settings.write_text(_settings(files))
        namespaces = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*namespaces, "bash", str(_SCRIPT), str(root), str(settings), *self._argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        self.started_at = time.time()

    def exit_code(self) -> int | None:
        """As a container runtime gives it (128 + signal); None while it runs."""
        if self._process is None:
            return None
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def terminate(self) -> None:
        """SIGTERM to the container's first process."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the first process, which ends all others of the container, and waits."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            try:
                self._process.wait(KILL_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(KILL_TIMEOUT_S)

    def processes(self) -> list[psutil.Process]:
        """All of its processes, the first one first; empty when it has ended."""
        if self._process is None or self._process.poll() is not None:
            return []
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        processes = self.processes()
        try:
            if processes:
                processes[0].send_signal(number)
            elif number is signal.SIGKILL:
                self._process.kill()
        except psutil.NoSuchProcess:
            pass


def _settings(files: Files) -> str:
    system = [("system", path) for path in files.system]
    covered = [row for row in system if _covered(row[1], files.mounts)]
    lines = [row for row in system if row not in covered]
    mounts = [
        ("mount", str(mount.source), mount.target, "ro" if mount.read_only else "rw")
        for mount in files.mounts
    ]
    identity = [("user", str(files.user[0]), str(files.user[1]))] if files.user else []
    rest = [("hostname", files.hostname), ("workdir", files.workdir)]
    readonly = [("readonly", "yes")] if files.read_only_root else []
    rows: list[tuple[str, ...]] = [*lines, *mounts, *covered, *identity, *rest, *readonly]
    return "".join("\t".join(row) + "\n" for row in rows)


def _covered(path: str, mounts: Sequence[Mount]) -> bool:
    """Whether a volume would hide it: a checkout below /tmp, say."""
    return any(Path(path).is_relative_to(mount.target) for mount in mounts)

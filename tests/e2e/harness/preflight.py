"""Whether the cluster tests can run here: code 0, else code 1 and the reasons.

    PYTHONPATH=tests python -m e2e.harness.preflight

It unpacks what is at hand, and builds nothing: `make e2e` would, in about ten minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from e2e.harness.binaries import MissingBinaryError, find_binaries, helm_path

PROGRAMS = ("unshare", "mount", "setpriv", "chroot", "hostname", "ip", "openssl")
TRY_TIMEOUT_S = 20


def reasons() -> list[str]:
    """Why they cannot; empty where they can."""
    if os.geteuid() != 0:
        return ["the test kubelet mounts and adds addresses to lo: run it as root"]
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        packages = "util-linux, mount, hostname, iproute2, openssl"
        return [f"{', '.join(missing)} not found (Debian's packages: {packages})"]
    if not _namespaces():
        return ["this machine refuses mount and process namespaces, which the test's pods need"]
    found = []
    for seek in (lambda: find_binaries(build=False), helm_path):
        try:
            seek()
        except (MissingBinaryError, OSError, subprocess.TimeoutExpired) as error:
            found.append(str(error))
    return found


def _namespaces() -> bool:
    command = ["unshare", "--mount", "--pid", "--uts", "--fork", "true"]
    return subprocess.run(command, capture_output=True, timeout=TRY_TIMEOUT_S).returncode == 0


def main() -> int:
    """The exit code."""
    found = reasons()
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

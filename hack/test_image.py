"""`make test-image`: build both images in clean roots and start their programs there.

    python hack/test_image.py FOLDER [operator] [agent]

Each program runs as the image's user over a read-only root, with the writable places that the chart
gives it. The agent answers a completion; the operator's image has no torch.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from image_root import SOURCE, Image, ImageError, build, enter, entering

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
CALL_S = 60.0

# Run by the image's own Python.
WHO = """
import os
assert os.getuid() == os.getgid() == 10001, (os.getuid(), os.getgid())
try:
    open("/opt/omniserve/written", "w")
except OSError:
    pass
else:
    raise SystemExit("the root can be written to")
"""
NO_TORCH = """
import importlib.util, sys
import omniserve_operator.cli
assert "torch" not in sys.modules, "the operator imports torch"
assert importlib.util.find_spec("torch") is None, "the operator's image contains torch"
"""
COMPILED = """
from omniserve_agent.scheduling import omniserve
assert omniserve.__file__.endswith(".so"), omniserve.__file__
"""
NO_PIP = """
import importlib.util
assert importlib.util.find_spec("pip") is None, "the image contains pip"
"""


def check_operator(image: Image) -> None:
    """Version, help, and what must not be in it."""
    _check_program(image)
    _python(image, NO_TORCH)


def check_agent(image: Image) -> None:
    """Version, help, compiled scheduling, and one completion by the model in the image."""
    _check_program(image)
    _python(image, COMPILED)
    with _serving(image) as url:
        answer = _post(
            f"{url}/v1/completions",
            {"model": "chat", "prompt": "One, two, three,", "max_tokens": 8},
        )
    print(f"answer: {answer}")


def _check_program(image: Image) -> None:
    _python(image, WHO)
    _python(image, NO_PIP)
    for flag in ("--version", "--help"):
        enter(image, [*image.entrypoint, flag], read_only=True)


def _python(image: Image, text: str) -> None:
    enter(image, ["python", "-c", text], read_only=True)


@contextmanager
def _serving(image: Image) -> Iterator[str]:
    """`omniserve-agent serve` on the examples until the block ends; it must then stop."""
    port = _free_port()
    manifest = image.root / "examples.yaml"
    manifest.write_text((SOURCE / "examples/hybrid.yaml").read_text())
    manifest.chmod(0o644)
    command = [*image.entrypoint, "serve", "-f", "/examples.yaml", f"--port={port}"]
    process = subprocess.Popen(
        entering(
            image,
            [*command, "--cache-dir=/var/cache/omniserve"],
            host_configuration=False,
            read_only=True,
        ),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _until_ready(process, url)
        yield url
    finally:
        for agent in psutil.Process(process.pid).children():  # unshare lets no SIGTERM through
            agent.terminate()
        process.wait(STOP_TIMEOUT_S)
        _until_gone(port)


def _until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    reason = "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ImageError(f"the agent ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=CALL_S):
                return
        except urllib.error.HTTPError as error:
            reason = error.read(500).decode(errors="replace")
        except OSError as error:
            reason = str(error)
        time.sleep(1)
    raise ImageError(f"the agent was not ready within {READY_TIMEOUT_S:.0f} s: {reason}")


def _until_gone(port: int) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.5)
    raise ImageError(f"the agent still listens {STOP_TIMEOUT_S:.0f} s after SIGTERM")


def _post(url: str, body: dict[str, object]) -> str:
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=CALL_S) as response:
        answer = json.load(response)
    if answer["usage"]["completion_tokens"] < 1:
        raise ImageError(f"{url} answered without a token: {answer}")
    return repr(answer["choices"][0]["text"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


CHECKS = {"operator": check_operator, "agent": check_agent}


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    folder, *names = arguments
    try:
        for name in names or CHECKS:
            image = build(name, Path(folder))
            print(f"# starting {' '.join(image.entrypoint)} as {image.user}", flush=True)
            CHECKS[name](image)
            print(f"image {name}: ok", flush=True)
    except ImageError as error:
        print(f"test_image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

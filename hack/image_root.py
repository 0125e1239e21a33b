"""Carry out an image's Dockerfile in clean roots, without a container engine.

    python hack/image_root.py build operator|agent FOLDER
    python hack/image_root.py lock operator|agent FOLDER    # newest versions, pinned for the image

`FROM debian:…` becomes a root made by debootstrap, from the mirror that this machine's apt uses;
COPY and RUN act in it, with this machine's pip configuration. Needs root rights and debootstrap.
`hack/test_image.py` starts the programs in what comes out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
KNOWN = ("FROM", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT")
WRITABLE = ("/tmp", "/var/cache/omniserve", "/var/cache/triton", "/dev/shm")  # as in the chart
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
HOST_CERTIFICATES = Path("/run/host-certificates.crt")
STEP_TIMEOUT_S = 1800


class ImageError(Exception):
    """What could not be done; one line for the user."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its arguments as written."""

    name: str
    arguments: str


def parse(text: str) -> list[Instruction]:
    """The instructions; ImageError for one that this script does not carry out."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]
    for instruction in found:
        if instruction.name not in KNOWN:
            raise ImageError(f"Dockerfile: {instruction.name} is not one of {', '.join(KNOWN)}")
    return found


@dataclass
class Image:
    """A stage being built, then the image."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    entrypoint: tuple[str, ...] = ()


class Builder:
    """Carries out instructions, a folder for each stage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stages: dict[str, Image] = {}

    def build(self, dockerfile: Path) -> Image:
        """The last stage."""
        image: Image | None = None
        for instruction in parse(dockerfile.read_text()):
            print(f"# {instruction.name} {instruction.arguments}", flush=True)
            if instruction.name == "FROM":
                image = self._from(instruction.arguments)
            elif image is None:
                raise ImageError(f"{dockerfile}: {instruction.name} comes before FROM")
            else:
                self._act(image, instruction)
        if image is None:
            raise ImageError(f"{dockerfile}: no FROM")
        return image

    def _from(self, arguments: str) -> Image:
        match = re.fullmatch(r"debian:(?P<suite>[a-z]+)-slim(?: AS (?P<name>[a-z]+))?", arguments)
        if match is None:
            raise ImageError(f"FROM {arguments}: only debian:SUITE-slim can be made here")
        name = match["name"] or "image"
        root = self._folder / name
        shutil.rmtree(root, ignore_errors=True)
        _run(["cp", "--archive", _base(self._folder, match["suite"]), root])
        self._stages[name] = Image(root)
        return self._stages[name]

    def _act(self, image: Image, instruction: Instruction) -> None:
        arguments = instruction.arguments
        match instruction.name:
            case "COPY":
                self._copy(image, shlex.split(arguments))
            case "RUN":
                enter(image, ["sh", "-c", arguments], host_configuration=True)
            case "ENV":
                key, _, value = arguments.partition("=")
                image.environment[key] = value
            case "USER":
                image.user = arguments
            case "ENTRYPOINT":
                image.entrypoint = tuple(json.loads(arguments))

    def _copy(self, image: Image, words: Sequence[str]) -> None:
        *sources, target = [word for word in words if not word.startswith("--from=")]
        into = image.root / target.lstrip("/")
        stage = next((w.removeprefix("--from=") for w in words if w.startswith("--from=")), None)
        if stage is not None:
            _run(["cp", "--archive", self._stages[stage].root / sources[0].lstrip("/"), into])
            return
        for source in sources:
            _copy_tracked(source, into / source if target.endswith("/") else into)


def _copy_tracked(source: str, target: Path) -> None:
    """What git knows of `source`, as `.dockerignore` leaves out what was built."""
    listed = _run(["git", "-C", SOURCE, "ls-files", "-co", "--exclude-standard", source])
    for name in listed.split():
        path = target / Path(name).relative_to(source) if name != source else target
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / name, path)
    if not listed:
        raise ImageError(f"COPY {source}: there is no such file in {SOURCE}")


def _base(folder: Path, suite: str) -> Path:
    """A clean root of the suite, made once."""
    base = folder / f"base-{suite}"
    if not (base / "etc/debian_version").is_file():
        shutil.rmtree(base, ignore_errors=True)
        _run(["debootstrap", "--variant=minbase", suite, base, _mirror(suite)])
        for part in ("sources.list.d", "apt.conf.d"):
            shutil.copytree(Path("/etc/apt") / part, base / "etc/apt" / part, dirs_exist_ok=True)
        (base / "etc/apt/sources.list").unlink(missing_ok=True)
    return base


def _mirror(suite: str) -> str:
    """The mirror that apt uses for the suite."""
    targets = _run(["apt-get", "indextargets", "--format", "$(SUITE) $(CODENAME) $(REPO_URI)"])
    for line in targets.splitlines():
        *names, uri = line.split()
        if suite in names:
            return uri
    raise ImageError(f"apt knows no mirror for {suite}; run apt-get update on Debian {suite}")


def enter(
    image: Image,
    command: Sequence[str],
    *,
    host_configuration: bool = False,
    read_only: bool = False,
) -> None:
    """Run a command in the image's root and namespaces of its own; all mounts end with it."""
    done = subprocess.run(
        entering(image, command, host_configuration=host_configuration, read_only=read_only),
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise ImageError(f"{shlex.join(command)} in {image.root} ended with {done.returncode}")


def entering(
    image: Image, command: Sequence[str], *, host_configuration: bool, read_only: bool
) -> list[str]:
    """The command line that does so."""
    root = shlex.quote(str(image.root))
    mounts = [f"mount --bind {root} {root}"]
    for path in _host_paths() if host_configuration else ():
        # The root's own certificates are written while ca-certificates is installed.
        place = shlex.quote(f"{image.root}{HOST_CERTIFICATES if path == CERTIFICATES else path}")
        make = (
            f"mkdir -p {place}" if path.is_dir() else f"mkdir -p $(dirname {place}); touch {place}"
        )
        mounts.append(f"{make}; mount --bind -o ro {path} {place}")
    if read_only:
        mounts.append(f"mkdir -p {' '.join(f'{root}{path}' for path in WRITABLE[:-1])}")
        mounts.append(f"mount -o remount,bind,ro {root}")
    mounts += [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
    mounts.append(f"mount --rbind /sys {root}/sys")
    if read_only:
        mounts += [f"mount -t tmpfs -o mode=1777 tmpfs {root}{path}" for path in WRITABLE]
    identity = f"--userspec={image.user}" if read_only else "--userspec=0:0"
    script = "; ".join([*mounts, f'exec chroot {identity} {root} "$@"'])
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGTERM"]
    variables = [f"{k}={v}" for k, v in _environment(image, host_configuration).items()]
    return [*namespaces, "sh", "-ec", script, "sh", "env", "-i", *variables, *command]


def _host_paths() -> list[Path]:
    """Names, certificates and what pip's configuration points to."""
    told = _run(["pip", "config", "list"]) + os.environ.get("PIP_FIND_LINKS", "")
    named = [Path(text) for text in re.findall(r"(?<![\w.:/])(?:file://)?(/[\w./-]+)", told)]
    files = [Path("/etc/resolv.conf"), Path("/etc/hosts"), Path("/etc/pip.conf")]
    files.append(Path("/etc/xdg/pip"))
    files.append(CERTIFICATES)
    paths = [path for path in dict.fromkeys([*files, *named]) if path.exists()]
    return [path for path in paths if not any(parent in paths for parent in path.parents)]


def _environment(image: Image, host_configuration: bool) -> dict[str, str]:
    """The image's, never this machine's, but for pip's and proxies' variables while building."""
    path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"}
    told = {k: v for k, v in os.environ.items() if re.match(r"PIP_|(https?|no)_proxy$", k, re.I)}
    told["PIP_CERT"] = str(HOST_CERTIFICATES)
    return path | (told if host_configuration else {}) | image.environment


def _run(command: Sequence[str | Path]) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise ImageError(f"{shlex.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


def build(name: str, folder: Path) -> Image:
    """The image `name`, under `folder`."""
    return Builder(folder / name).build(SOURCE / f"images/{name}/Dockerfile")


def lock(name: str, folder: Path) -> None:
    """Build with nothing pinned but what the repository pins, then pin what came."""
    file = SOURCE / f"images/constraints-{name}.txt"
    pinned = (SOURCE / "constraints.txt").read_text()
    before = file.read_text() if file.exists() else ""
    file.write_text(pinned)
    try:
        root = build(name, folder).root
        python = root / "opt/omniserve/bin/python3"
        frozen = _run([sys.executable, "-m", "pip", "--python", python, "freeze"])
    except BaseException:
        file.write_text(before)
        raise
    file.write_text(locked(frozen))


def locked(frozen: str) -> str:
    """`pip freeze` without this project, and without local versions: 2.13.0+cpu is a 2.13.0."""
    lines = [line for line in frozen.splitlines() if not line.startswith("omniserve")]
    return "".join(re.sub(r"\+\w+$", "", line) + "\n" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    commands = {"build": build, "lock": lock}
    if len(arguments) != 3 or arguments[0] not in commands:
        print("image_root: use build|lock operator|agent FOLDER", file=sys.stderr)
        return 2
    try:
        commands[arguments[0]](arguments[1], Path(arguments[2]))
    except ImageError as error:
        print(f"image_root: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`omniserve-operator`: the command line. Every flag has an environment variable; a bad value ends
the program with one line and exit code 2 before anything starts."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from kubernetes.aio.config import ConfigException

from omniserve_crds.llmservice import ServiceClass
from omniserve_crds.manifests import ManifestError, load_manifests
from omniserve_crds.version import VERSION
from omniserve_operator import logs
from omniserve_operator.api import ApiError
from omniserve_operator.dryrun import dry_run
from omniserve_operator.logs import LogFormat
from omniserve_operator.run import WatchEndedError
from omniserve_operator.run import run as run_operator
from omniserve_operator.settings import Settings, Tenancy

T = TypeVar("T")
EXIT_REFUSED = 1
EXIT_BAD_INPUT = 2
EXIT_UNREACHABLE = 3
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_OBJECT_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_LEVELS = ("debug", "info", "warning", "error")

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _namespace(text: str) -> str:
    if not _NAMESPACE.fullmatch(text):
        raise typer.BadParameter(f"is {text!r}; write a namespace such as omniserve")
    return text


def _object_name(text: str) -> str:
    if not _OBJECT_NAME.fullmatch(text):
        raise typer.BadParameter(f"is {text!r}; write a name such as omniserve-operator")
    return text


def _namespaces(text: str) -> tuple[str, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(dict.fromkeys(_namespace(part) for part in parts))


def _classes(text: str) -> frozenset[ServiceClass]:
    try:
        return frozenset(ServiceClass(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"is {text!r}; write LS, BE or LS,BE") from error


def _level(text: str) -> str:
    if text.lower() not in _LEVELS:
        raise typer.BadParameter(f"is {text!r}; write one of {', '.join(_LEVELS)}")
    return text.lower()


Namespace = Annotated[
    str,
    typer.Option(
        "--namespace",
        envvar="OMNISERVE_NAMESPACE",
        callback=_namespace,
        help="The release's namespace: agents, Lease and copies of Secrets.",
    ),
]
WatchNamespaces = Annotated[
    str,
    typer.Option(
        "--watch-namespaces",
        envvar="OMNISERVE_WATCH_NAMESPACES",
        help="Namespaces with LLMServices, comma-separated; empty: all.",
    ),
]
DefaultClasses = Annotated[
    str,
    typer.Option(
        "--default-classes",
        envvar="OMNISERVE_DEFAULT_CLASSES",
        help="Classes a namespace may use without the label omniserve.io/classes.",
    ),
]
DefaultMaxReplicas = Annotated[
    int,
    typer.Option(
        "--default-max-replicas",
        envvar="OMNISERVE_DEFAULT_MAX_REPLICAS",
        min=-1,
        max=100_000,
        help="Replicas a namespace may have without the annotation omniserve.io/max-replicas; "
        "-1: no limit.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"omniserve-operator {VERSION}")
        raise typer.Exit


@app.callback()
def operator(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """OmniServe's operator: LLMServices to ServingNodes, endpoints, statuses and Events."""


@app.command()
def run(
    namespace: Namespace,
    watch_namespaces: WatchNamespaces = "",
    host: Annotated[
        str, typer.Option(envvar="OMNISERVE_HOST", help="Address of /healthz, /readyz, /metrics.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="OMNISERVE_PORT", min=1, max=65535)] = 8080,
    default_classes: DefaultClasses = "LS,BE",
    default_max_replicas: DefaultMaxReplicas = -1,
    lease_name: Annotated[
        str,
        typer.Option(
            envvar="OMNISERVE_LEASE_NAME",
            callback=_object_name,
            help="The Lease in the release's namespace; of operators with the same one a single "
            "one writes.",
        ),
    ] = "omniserve-operator",
    tls: Annotated[
        bool, typer.Option(envvar="OMNISERVE_TLS", help="The agents' service ports speak HTTPS.")
    ] = False,
    protect_nodes: Annotated[
        bool,
        typer.Option(
            envvar="OMNISERVE_PROTECT_NODES",
            help="Mark Nodes in use so that autoscalers leave them alone.",
        ),
    ] = False,
    log_format: Annotated[LogFormat, typer.Option(envvar="OMNISERVE_LOG_FORMAT")] = LogFormat.JSON,
    log_level: Annotated[str, typer.Option(envvar="OMNISERVE_LOG_LEVEL", callback=_level)] = "info",
) -> None:
    """Watch and reconcile until SIGTERM. The server: KUBECONFIG, else the pod's own account."""
    logs.configure(log_format, log_level)
    settings = Settings(
        namespace=namespace,
        watch_namespaces=_namespaces(watch_namespaces),
        host=host,
        port=port,
        tenancy=_tenancy(default_classes, default_max_replicas),
        lease_name=lease_name,
        # The host's name tells people which pod it is, the rest tells two lives of it apart.
        identity=f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
        tls=tls,
        protect_nodes=protect_nodes,
    )
    _guarded(run_operator(settings))


@app.command()
def plan(
    namespace: Namespace,
    file: Annotated[
        list[Path], typer.Option("--file", "-f", help="LLMService manifests; may be repeated.")
    ],
    dry_run_only: Annotated[
        bool, typer.Option("--dry-run", help="Required: nothing else is offered.")
    ] = False,
    watch_namespaces: WatchNamespaces = "",
    default_classes: DefaultClasses = "LS,BE",
    default_max_replicas: DefaultMaxReplicas = -1,
) -> None:
    """Say what placing the manifests would do in the live cluster; exit code 1 where refused."""
    if not dry_run_only:
        raise typer.BadParameter("write --dry-run: applying is kubectl's work")
    logs.configure(LogFormat.CONSOLE, "warning")
    tenancy = _tenancy(default_classes, default_max_replicas)
    settings = Settings(namespace, _namespaces(watch_namespaces), tenancy=tenancy)
    try:
        manifests = load_manifests(file)
    except ManifestError as error:
        _fail(error.line, EXIT_BAD_INPUT)
    found = _guarded(dry_run(settings, manifests))
    print("\n".join(found.lines))
    raise typer.Exit(0 if found.placed else EXIT_REFUSED)


def _tenancy(classes: str, max_replicas: int) -> Tenancy:
    limit = None if max_replicas < 0 else max_replicas
    return Tenancy(classes=_classes(classes), max_replicas=limit)


def _guarded(work: Coroutine[Any, Any, T]) -> T:
    """One line and an exit code where the server cannot be reached or refuses."""
    try:
        return asyncio.run(work)
    except (ApiError, ConfigException, OSError, WatchEndedError) as error:
        _fail(str(error), EXIT_UNREACHABLE)


def _fail(line: str, code: int) -> NoReturn:
    print(f"omniserve-operator: {line}", file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    app()

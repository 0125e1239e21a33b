"""`omniserve-agent`: the command line. Flags of what serves have environment variables too; a bad
value ends the program with one line and exit code 2 before anything starts."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from typing import Annotated

import typer

from omniserve_agent import flags
from omniserve_agent.engine_flags import with_engine_flags
from omniserve_agent.exits import EXIT_BAD_INPUT, EXIT_FAILED, fail
from omniserve_agent.node_command import node
from omniserve_agent.profile_command import profile
from omniserve_agent.settings import Settings
from omniserve_agent.simulate_command import simulate
from omniserve_crds.version import VERSION

_SWITCH_VALUES = ("true", "false", "1", "0", "yes", "no", "on", "off")
# Newer typer carries its own copy of click, so the class is found rather than imported.
_USAGE_ERRORS = tuple(
    kind
    for kind in typer.BadParameter.mro()
    if issubclass(kind, Exception) and kind.__name__ == "UsageError"
)

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"omniserve-agent {VERSION}")
        raise typer.Exit


app.command()(simulate)
app.command()(node)
app.command()(profile)


@app.callback()
def agent(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """OmniServe's node agent: latency-sensitive and best-effort LLM serving from one engine."""


@app.command()
@with_engine_flags
def serve(
    file: flags.File = None,
    host: flags.Host = "127.0.0.1",
    port: flags.Port = 8000,
    admin_port: flags.AdminPort = None,
    secrets_dir: flags.SecretsDir = None,
    *,
    engine: Settings,
    be_retries: flags.BeRetries = 3,
    drain_grace: flags.DrainGrace = 30.0,
    cors_origin: flags.CorsOrigin = None,
    log_format: flags.LogFormat = "console",
    log_level: flags.LogLevel = "info",
) -> None:
    """Serve the LLMServices of the manifests until SIGTERM or SIGINT."""
    if not file:
        raise typer.BadParameter("-f/--file: none was given; name a YAML file of LLMServices")
    _run(
        replace(
            engine,
            files=tuple(file),
            host=host,
            port=port,
            admin_port=admin_port,
            secrets_dir=secrets_dir,
            be_retries=be_retries,
            drain_grace_s=drain_grace,
            cors_origins=tuple(cors_origin or ()),
            log_format=log_format,
            log_level=log_level,
        )
    )


def _run(settings: Settings) -> None:
    """Import what is slow only once the flags are known to be good."""
    from omniserve_agent.node import agent, logs
    from omniserve_agent.node.errors import EngineFailedError, NodeError

    logs.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(agent.serve(settings))
    except NodeError as error:
        fail(str(error), EXIT_BAD_INPUT)
    except EngineFailedError as error:
        fail(str(error), EXIT_FAILED)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit code."""
    try:
        _check_switches()
        command = typer.main.get_command(app)
        result = command.main(arguments, prog_name="omniserve-agent", standalone_mode=False)
    except _USAGE_ERRORS as error:
        print(f"omniserve-agent: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return result if isinstance(result, int) else 0


def _check_switches() -> None:
    """typer's own message for these names neither the value nor what would be right."""
    for flag in ("--share-cores", "--be-residency"):
        value = os.environ.get(flags.variable(flag), "true")
        if value.lower() not in _SWITCH_VALUES:
            raise typer.BadParameter(
                f"{flag} ({flags.variable(flag)}): {value!r} is unknown; use true or false"
            )

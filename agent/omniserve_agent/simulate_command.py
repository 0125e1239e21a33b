"""`omniserve-agent simulate`: policies in virtual time, on a machine one does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from omniserve_agent.scheduling.admission import AdmissionMode
from omniserve_agent.scheduling.jobs import ServiceClass
from omniserve_agent.scheduling.policies import POLICIES
from omniserve_agent.simulation import hardware as machines
from omniserve_agent.simulation import workload as loads
from omniserve_agent.simulation.experiment import Experiment, Figures, Setting

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
SHARES = ("attained_offered", "refused_share")


def simulate(
    profile: Annotated[str, typer.Option(help="Hardware profile.")] = "a100x4",
    model: Annotated[str, typer.Option(help="A model of the profile.")] = "llama-2-70b",
    policy: Annotated[
        list[str] | None, typer.Option(help="May be given several times. Default: all.")
    ] = None,
    ls_rate: Annotated[float, typer.Option(min=0.01, help="LS requests per second.")] = 3.0,
    arrivals: Annotated[str, typer.Option(help="poisson or bursty.")] = "poisson",
    be: Annotated[str, typer.Option(help="BE workload: longbench-v2 or dailymails.")] = (
        "dailymails"
    ),
    cpu_hosts: Annotated[int, typer.Option(min=0, max=64, help="CPU-only hosts.")] = 0,
    network_gbps: Annotated[float, typer.Option(min=0.1, help="To the CPU-only hosts.")] = 100.0,
    ttft_slo_ms: Annotated[int, typer.Option(min=1)] = 3000,
    tpot_slo_ms: Annotated[int, typer.Option(min=1)] = 250,
    admission: Annotated[AdmissionMode, typer.Option(help="For LS requests.")] = AdmissionMode.OFF,
    seconds: Annotated[float, typer.Option(min=2, help="Virtual seconds.")] = 300.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    trace: Annotated[
        Path | None, typer.Option(help=f"CSV with {','.join(loads.COLUMNS)}.", exists=True)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Figures as JSON.")] = None,
) -> None:
    """Run policies in virtual time and print attainment and BE throughput."""
    names = policy or list(POLICIES)
    for name in names:
        if name not in POLICIES:
            raise typer.BadParameter(f"--policy: {name!r} is unknown; use {', '.join(POLICIES)}")
    for flag, value, known in (
        ("--arrivals", arrivals, loads.ARRIVALS),
        ("--be", be, loads.BE_WORKLOADS),
    ):
        if value not in known:
            raise typer.BadParameter(f"{flag}: {value!r} is unknown; use {', '.join(known)}")
    try:
        hardware = machines.hardware(profile, model, cpu_hosts, network_gbps)
        requests = loads.read_trace(trace) if trace else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if requests is None:
        rate = ls_rate / hardware.engines
        requests = loads.latency_sensitive(rate, seconds, seed, arrivals)
    has_be = any(request.service_class is ServiceClass.BE for request in requests)
    rows = []
    for name in names:
        setting = Setting(
            policy=name,
            ttft_slo_s=ttft_slo_ms / 1e3,
            tpot_slo_s=tpot_slo_ms / 1e3,
            seconds=seconds,
            warm_up_s=seconds / 5,
            seed=seed,
            admission=admission,
        )
        backlog = None if has_be else loads.backlog(seed, loads.BE_WORKLOADS[be])
        rows.append(Experiment(hardware, setting, requests, backlog).run())
    Console().print(table_of(rows, f"simulated: {model} on {profile}, {seconds:g} virtual seconds"))
    if out is not None:
        out.write_text(json.dumps({"rows": [row.row() for row in rows]}, indent=2) + "\n")


def table_of(rows: list[Figures], title: str) -> Table:
    """What the terminal shows."""
    table = Table(title=title)
    table.add_column("policy")
    for name in COLUMNS.values():
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.policy, *(_text(name, getattr(row, name)) for name in COLUMNS))
    return table


def _text(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.0f}" if value >= 100 or isinstance(value, int) else f"{value:.1f}"

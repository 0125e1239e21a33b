"""`omniserve-agent profile`: what the device costs, as the SLO-driven policy sees it."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from omniserve_agent import flags
from omniserve_agent.engine_flags import with_engine_flags
from omniserve_agent.exits import EXIT_BAD_INPUT, EXIT_FAILED, fail, write_result
from omniserve_agent.scheduling.latency import Curve, LatencyModel
from omniserve_agent.settings import KV_CACHE_DTYPES, Settings, choice, count, output_file
from omniserve_agent.simulation.profile_file import ProfileFile, encode_profile

if TYPE_CHECKING:
    from omniserve_agent.node.assignments import EngineKey

BAR_CELLS = 40
UNITS = {
    "fixed": ("per iteration", 1e6, "us"),
    "key": ("per 1,000 keys of a decode row and layer", 1e9, "us"),
    "pair": ("per 1,000,000 query-key pairs of a prompt and layer", 1e12, "us"),
    "join": ("per joined row and layer", 1e6, "us"),
    "host": ("per GB that host attention reads meanwhile", 1e15, "us"),
}


@with_engine_flags
def profile(
    uri: Annotated[str, typer.Argument(help="The model, as in spec.model.uri.")],
    *,
    kv_cache_dtype: Annotated[
        str,
        flags.option(
            "--kv-cache-dtype",
            "As in spec.model.kvCacheDtype.",
            choice(*KV_CACHE_DTYPES),
            "DTYPE",
        ),
    ] = "auto",
    max_model_len: Annotated[
        int | None,
        flags.option(
            "--max-model-len", "As in spec.model.maxModelLen.", count(16, 1_048_576), "TOKENS"
        ),
    ] = None,
    engine: Settings,
    fresh: Annotated[bool, typer.Option(help="Measure again where a profile is kept.")] = False,
    plot: Annotated[
        Path | None,
        flags.option("--plot", "A PNG of the curves (matplotlib).", output_file, "FILE"),
    ] = None,
    out: Annotated[
        Path | None, flags.option("--out", "A .json profile for simulate.", output_file, "FILE")
    ] = None,
) -> None:
    """Measure, or show where it is kept, the latency model of a model on this machine's device.

    Given the flags of a server and what its manifest says of the model, it is that server's.
    """
    from omniserve_agent.node.assignments import EngineKey

    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        fail("--plot needs matplotlib; install it or leave the flag out", EXIT_BAD_INPUT)
    key = EngineKey(uri, None, "auto", kv_cache_dtype, max_model_len, None, None)
    console = Console()
    model, found = _measured(engine, key, fresh, console)
    label = found.measured_on
    show(console, model, f"{uri} on {label}")
    if out is not None:
        write_result("--out", out, encode_profile(found))
    if plot is not None:
        draw(model, plot, f"{uri}, {label}")
        console.print(f"written: {plot}")


def _measured(
    settings: Settings, key: EngineKey, fresh: bool, console: Console
) -> tuple[LatencyModel, ProfileFile]:
    from omniserve_agent.node import profile as node
    from omniserve_agent.node.errors import NodeError
    from omniserve_agent.node.profile_export import profile_of

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def step(stage: str, fraction: float) -> None:
            bar.update(task, description=stage, completed=fraction)

        try:
            found = asyncio.run(node.profile(settings, key, step, fresh=fresh))
            return found.measured.latency, profile_of(key.uri, found)
        except NodeError as error:
            fail(str(error), EXIT_BAD_INPUT)


def show(console: Console, model: LatencyModel, title: str) -> None:
    """Curves as bars, steps, coefficients."""
    table = Table(title=f"{title}: dense modules of one layer ({model.layers} layers)")
    for name in ("rows", "us", "", "us per row"):
        table.add_column(name, justify="left" if name == "" else "right")
    edges, most = set(model.dense.edges()), max(model.dense.seconds)
    for rows, seconds in zip(model.dense.rows, model.dense.seconds, strict=True):
        bar = "█" * round(BAR_CELLS * seconds / most) + (" ◄ step" if rows in edges else "")
        table.add_row(str(rows), f"{1e6 * seconds:.1f}", bar, f"{1e6 * seconds / rows:.2f}")
    console.print(table)
    rest = Table("coefficient", "what", "value")
    rest.add_row("head", f"logits of 1 to {model.head.rows[-1]} rows", _span(model.head))
    for name, (what, scale, unit) in UNITS.items():
        rest.add_row(name, what, f"{scale * getattr(model, name):.3g} {unit}")
    console.print(rest)


def _span(curve: Curve) -> str:
    return f"{1e6 * curve.seconds[0]:.0f} to {1e6 * curve.seconds[-1]:.0f} us"


def draw(model: LatencyModel, path: Path, title: str) -> None:
    """The curves as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, curve, name in ((axes[0], model.dense, "one layer"), (axes[1], model.head, "head")):
        axis.plot(curve.rows, [1e3 * seconds for seconds in curve.seconds], "o-", ms=3)
        axis.set(title=name, xlabel="rows", ylabel="ms", ylim=(0, None))
        for edge in curve.edges():
            axis.axvline(edge, color="0.8", lw=0.8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=100, format="png")
    except OSError as error:
        fail(f"--plot: {path}: {error.strerror}", EXIT_FAILED)
    finally:
        plt.close(figure)

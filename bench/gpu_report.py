"""`bench/gpu.sh`'s second half: the real engine on random weights, and the outcome of its tests.

One stream's TPOT and sixteen streams' decode rate, with attention on the device and with BE
attention on the host cores. Results: gpu.json in the given folder and a table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

import report
from omniserve_agent.engine.build import build_engine
from omniserve_agent.engine.errors import EngineSetupError
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import EngineConfig, SamplingParams, ServiceClass, Submit

LS, BE = ServiceClass.LS, ServiceClass.BE
CASES = [(LS, 1), (LS, 16), (BE, 16)]
PROMPT_TOKENS = 128
MAX_STEPS = 200_000  # far beyond any case: an engine that makes no progress is an error
Shape = dict[str, Any]
Times = dict[str, list[float]]  # arrival of each token, in seconds, by request


class BenchError(Exception):
    """No figures can be given; one line for the user."""


def shape(layers: int, hidden: int, inner: int, heads: tuple[int, int], vocab: int) -> Shape:
    """A Llama's configuration; `heads` are query and kv heads of 64 elements."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 64,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }


MODELS = {
    "tiny": shape(4, 256, 688, (4, 2), 4096),
    "smollm2-135m": shape(30, 576, 1536, (9, 3), 49152),
}


def write_checkpoint(config: Shape, directory: str, seed: int) -> None:
    """Random bf16 weights as a model directory."""
    torch.manual_seed(seed)
    wanted = AutoConfig.for_model("llama", dtype="bfloat16", **config)
    made: Any = AutoModelForCausalLM
    made.from_config(wanted, dtype=torch.bfloat16).save_pretrained(directory)


@contextmanager
def random_engine(config: Shape, device: str, seed: int) -> Iterator[Engine]:
    """The real engine over random weights, started as the engine process does; BE lives on the
    host."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="omniserve-gpu-") as directory:
        write_checkpoint(config, directory, seed)
        settings = EngineConfig(
            model_dir=directory,
            device=device,
            host_kv_bytes=256 << 20,
            host_workers=max(1, min(8, cores - 2)),
            be_device_residency=False,
        )
        engine, _ = build_engine(settings, lambda *_: None)
    try:
        yield engine
    finally:
        engine.close()


def requests(
    generator: random.Random, service_class: ServiceClass, streams: int, vocab: int, output: int
) -> list[Submit]:
    """Greedy requests of equal lengths whose prompts share nothing."""
    return [
        Submit(
            request_id=f"stream-{stream}",
            service="bench/gpu",
            service_class=service_class,
            prompt=[generator.randrange(vocab) for _ in range(PROMPT_TOKENS)],
            max_tokens=output,
            sampling=SamplingParams(temperature=0.0),
            ignore_eos=True,
        )
        for stream in range(streams)
    ]


def drive(engine: Engine, submits: Sequence[Submit]) -> Times:
    """Run the requests side by side to their end. Raises BenchError."""
    times: Times = {submit.request_id: [] for submit in submits}
    for submit in submits:
        refused = engine.submit(submit)
        if refused is not None:
            raise BenchError(f"the engine refused {refused.request_id}: {refused.message}")
    for _ in range(MAX_STEPS):
        if engine.idle:
            return times
        for event in engine.step():
            now_s = time.perf_counter()
            times[event.request_id] += [now_s] * len(event.token_ids)
    raise BenchError(f"not finished after {MAX_STEPS} steps")


def tpot_ms(times: Times) -> float:
    """Median over streams of the mean time per token after the first."""
    per_stream = [(t[-1] - t[0]) / (len(t) - 1) for t in times.values()]
    return 1e3 * statistics.median(per_stream)


def decode_tokens_per_s(times: Times) -> float | None:
    """While every stream decodes: after the last first token, up to the first last one.

    None where there was no such time.
    """
    start_s, end_s = max(t[0] for t in times.values()), min(t[-1] for t in times.values())
    tokens = sum(start_s < at_s <= end_s for t in times.values() for at_s in t)
    return round(tokens / (end_s - start_s), 1) if end_s > start_s else None


def rows(name: str, device: str, output: int, seed: int) -> Iterator[dict[str, Any]]:
    """One row per case, each after a warm-up of its own."""
    config, generator = MODELS[name], random.Random(seed)
    with random_engine(config, device, seed) as engine:
        for service_class, streams in CASES:
            for length in (8, output):
                before = engine.executor.figures().host_rows
                times = drive(
                    engine,
                    requests(generator, service_class, streams, config["vocab_size"], length),
                )
            yield {
                "device": device,
                "model": f"{name} (random bfloat16)",
                "service_class": service_class.value,
                "streams": streams,
                "prompt_tokens": PROMPT_TOKENS,
                "output_tokens": output,
                "tpot_ms": round(tpot_ms(times), 3),
                "decode_tokens_per_s": decode_tokens_per_s(times),
                "host_attention_rows": engine.executor.figures().host_rows - before,
            }


def outcome(junit: Path) -> dict[str, Any]:
    """Counts and seconds of a JUnit file; zeros where the tests were cut off before writing it."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    seconds = 0.0
    if junit.exists():
        for suite in ElementTree.parse(junit).getroot().iter("testsuite"):
            counts = {key: counts[key] + int(suite.get(key, 0)) for key in counts}
            seconds += float(suite.get("time", 0))
    failed = counts["failures"] + counts["errors"]
    return {
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
        "seconds": round(seconds, 1),
    }


def accelerator(device: str) -> dict[str, Any]:
    """Device, torch and CUDA by name and version."""
    name = torch.cuda.get_device_name(device) if device == "cuda" else report.cpu_model()
    return {"name": name, "torch": torch.__version__, "cuda": torch.version.cuda}


def packed_commit() -> str:
    """The tree's commit; where git is not there, the one at the time of packing."""
    note = report.ROOT / ".whl/COMMIT"
    known = report.commit()
    return f"{note.read_text().strip()} (packed)" if known == "unknown" and note.exists() else known


def show(results: dict[str, Any]) -> None:
    """The table, and one line about the tests and the machine."""
    table = Table(title="engine on random weights")
    for column in ("model", "class", "streams", "TPOT ms", "decode tok/s", "host row-layers"):
        table.add_column(column, justify="left" if column in ("model", "class") else "right")
    for row in results["rows"]:
        fields = ("model", "service_class", "streams", "tpot_ms", "decode_tokens_per_s")
        table.add_row(*(str(row[field]) for field in (*fields, "host_attention_rows")))
    Console(width=100).print(table)
    tests, found = results["tests"], results["accelerator"]
    print(
        f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped "
        f"in {tests['seconds']} s; {found['name']}, torch {found['torch']}, CUDA {found['cuda']}"
    )


def stop(*_: object) -> None:
    """SIGTERM, from a time limit: what has been measured so far is still written."""
    raise BenchError("told to stop before every case had run")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/gpu_report.py", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tests", type=Path, required=True, help="JUnit file of the test run")
    parser.add_argument("--out", type=Path, default=report.OUT, help="folder of gpu.json")
    parser.add_argument("--output", type=int, default=128, help="output tokens (128)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def main() -> int:
    """The program; 1 where a test failed, none passed, or there are no figures."""
    options = parse()
    signal.signal(signal.SIGTERM, stop)
    tests = outcome(options.tests)
    results: dict[str, Any] = {
        "machine": report.machine(),
        "accelerator": accelerator(options.device),
        "commit": packed_commit(),
        "command": " ".join(sys.argv),
        "seed": options.seed,
        "tests": tests,
        "rows": [],
    }
    try:
        for name in MODELS:
            for row in rows(name, options.device, options.output, options.seed):
                results["rows"].append(row)
    except (BenchError, EngineSetupError) as error:
        print(f"bench/gpu_report.py: {error}", file=sys.stderr)
        return 1
    finally:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
        show(results)
    return 0 if tests["passed"] and not tests["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""The two services of the co-location benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

UNBOUND_MS = 60_000  # an SLO that sets no deadline, for calibration


def write_manifest(
    path: Path, model: Mapping[str, object], slo: tuple[float, float] | None
) -> Path:
    """`chat` with this SLO (TTFT, TPOT in ms; None: unbound) and `batch` on one model."""
    ttft_ms, tpot_ms = slo or (UNBOUND_MS, UNBOUND_MS)
    chat = {"class": "LS", "slo": {"ttftMs": round(ttft_ms), "tpotMs": round(tpot_ms)}}
    documents = [
        {
            "apiVersion": "omniserve.io/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": name},
            "spec": {**spec, "model": dict(model)},
        }
        for name, spec in (("chat", chat), ("batch", {"class": "BE"}))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump_all(documents))
    return path

"""The real engine on real or tiny models, driven step by step as the process would."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

from omniserve_agent.engine.build import build_engine
from omniserve_agent.engine.messages import EngineConfig
from support.fake_engine import Collector, run

NEAR_TIE = 1e-4  # top-two logits closer than this may order differently


@contextmanager
def engine_for(model_dir, drafts=None, drafts_source="off", **config):
    """An engine with small pools, float32, not pinned; closed at the end."""
    settings = {
        "dtype": "float32",
        "device_kv_bytes": 32 << 20,
        "host_kv_bytes": 32 << 20,
        "host_workers": 2,
        "slots": 16,
        "drafts": drafts_source,
        "ls_prefill_rows": 24,
        "be_prefill_rows": 12,
        **config,
    }
    engine, _ = build_engine(
        EngineConfig(model_dir=str(model_dir), **settings), lambda *_: None, drafts
    )
    try:
        yield engine
    finally:
        engine.close()


def generate(engine, submits):
    """Run requests together until all end; tokens by request id."""
    for one in submits:
        refused = engine.submit(one)
        assert refused is None, refused
    return run(engine, Collector(), max_steps=20_000).tokens


def check_same(name, got, expected, gaps):
    """Token for token, or different from a near tie on: those are listed as warnings."""
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=False)):
        if ours != theirs:
            gap = gaps[index]
            assert gap < NEAR_TIE, f"{name}: token {index} is {ours}, not {theirs} (gap {gap})"
            warnings.warn(f"{name}: near tie at token {index}, gap {gap:.1e}", stacklevel=2)
            return
    assert len(got) == len(expected), f"{name}: {len(got)} tokens, not {len(expected)}"

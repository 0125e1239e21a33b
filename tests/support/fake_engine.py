"""The real loop over the fake executor, with tiny pools."""

from __future__ import annotations

import time
from collections import Counter

from omniserve_agent.engine.intake import IntakeLimits
from omniserve_agent.engine.kv.blocks import BlockPool
from omniserve_agent.engine.kv.tables import KvTier
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import SamplingParams, ServiceClass, Submit
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.jobs import DEVICE_STAGES, Stage, Tier
from omniserve_agent.scheduling.plan import Caps
from support.fake_executor import BLOCK, VOCAB, FakeExecutor, FakeStore

GREEDY = SamplingParams(temperature=0.0)


def make_engine(
    device_blocks=12,
    host_blocks=20,
    layers=3,
    seed=0,
    depth=0,
    drafts=None,
    max_waiting=64,
    slots=8,
    exact_host=True,
    gate=None,
    clock=time.monotonic,
    **caps,
):
    device_store, host_store = FakeStore(device_blocks), FakeStore(host_blocks)
    executor = FakeExecutor(device_store, host_store, layers, seed, depth, slots)
    settings = {
        "max_device_rows": 6,
        "join_rows": 8,
        "ls_prefill_rows": 8,
        "be_prefill_rows": 6,
        **caps,
    }
    policy = FixedCaps(
        Caps(
            layers=layers,
            block_tokens=BLOCK,
            device_blocks=device_blocks,
            host_blocks=host_blocks,
            growth_iterations=4,
            **settings,
        )
    )
    limits = IntakeLimits(
        max_request_tokens={
            ServiceClass.LS: device_blocks * BLOCK,
            ServiceClass.BE: host_blocks * BLOCK,
        },
        max_waiting=max_waiting,
        slots=slots,
        vocab_size=VOCAB,
    )
    return Engine(
        policy,
        executor,
        KvTier(BlockPool(device_blocks, BLOCK), device_store),
        KvTier(BlockPool(host_blocks, BLOCK), host_store, exact_host),
        limits,
        layers,
        drafts,
        clock,
        gate,
    )


def submit(request_id, prompt, service_class="LS", max_tokens=5, **fields):
    fields.setdefault("sampling", GREEDY)
    fields.setdefault("service", f"default/{service_class.lower()}")
    return Submit(
        request_id=request_id,
        service_class=ServiceClass(service_class),
        prompt=list(prompt),
        max_tokens=max_tokens,
        **fields,
    )


class Collector:
    """Gathers token events; checks that nothing comes after the end."""

    def __init__(self):
        self.tokens: dict[str, list[int]] = {}
        self.finished: dict[str, str] = {}
        self.order: list[str] = []

    def take(self, events):
        for event in events:
            assert event.request_id not in self.finished
            self.tokens.setdefault(event.request_id, []).extend(event.token_ids)
            self.order += [event.request_id] * len(event.token_ids)
            if event.finish_reason:
                self.finished[event.request_id] = event.finish_reason


def run(engine, collector=None, max_steps=5000):
    """Step until idle; a stall is a failure."""
    collector = collector or Collector()
    for _ in range(max_steps):
        if engine.idle:
            return collector
        collector.take(engine.step())
    raise AssertionError(f"not idle after {max_steps} steps: {state(engine)}")


def state(engine):
    return [
        (j.handle, j.service_class.value, j.stage.name, j.tokens, j.computed, j.held)
        for j in (r.job for r in engine.intake.requests.values())
    ]


def check_consistent(engine):
    """Stages, tables, slots and reference counts tell one story; call between steps."""
    tables = {Tier.DEVICE: [], Tier.HOST: list(engine.residency._draining.values())}
    for request in engine.intake.requests.values():
        job, where = request.job, state(engine)
        on = (request.device is not None, request.host is not None)
        if job.stage in DEVICE_STAGES:
            assert on == (True, request.host is not None), where
        else:
            assert on == (False, job.stage is not Stage.WAITING), where
        assert (request.slot is not None) == (job.stage is Stage.HOPPING), where
        assert job.device_blocks == len(request.device.blocks if request.device else ()), where
        assert job.host_blocks == len(request.host.blocks if request.host else ()), where
        assert job.tokens == len(request.tokens) + request.pending, where
        assert request.pending <= engine.executor.depth, where
        assert not job.held or request.pending, where
        if job.stage is not Stage.HOPPING:
            assert 0 <= job.computed < job.tokens, where
        if job.stage is Stage.WAITING:
            assert job.computed == 0, where
        check_found(job, where)
        if job.service_class is ServiceClass.LS:
            assert on[1] == (job.stage is Stage.SWAPPED), where
            assert job.computed or job.stage is not Stage.SWAPPED, where
        tables[Tier.DEVICE] += [request.device] if request.device else []
        tables[Tier.HOST] += [request.host] if request.host else []
    for staged in engine.batch.staged:
        assert engine.intake.requests[staged].job.stage is Stage.STAGED
    ls = [r for r in engine.intake.requests.values() if r.job.service_class is ServiceClass.LS]
    held_by_ls = {block for r in ls if r.device for block in r.device.blocks}
    assert (engine.jobs.ls_device_blocks or 0) == len(held_by_ls)
    for tier, kv in ((Tier.DEVICE, engine.residency.device), (Tier.HOST, engine.residency.host)):
        held = Counter(block for table in tables[tier] for block in table.blocks)
        assert {b: kv.pool.references(b) for b in range(kv.pool.blocks)} == {
            b: held[b] for b in range(kv.pool.blocks)
        }
        assert sorted(kv.store.tables) == sorted(table.sequence for table in tables[tier])


def check_found(job, where):
    """Only an LS request that waits has a prefix found, of whole blocks, and never all of it."""
    if job.stage is not Stage.WAITING or job.service_class is not ServiceClass.LS:
        assert job.found_tokens == job.shared_blocks == 0, where
    assert job.found_tokens % BLOCK == 0, where
    assert 0 <= BLOCK * job.shared_blocks <= job.found_tokens < job.tokens, where


def check_no_leak(engine):
    """Every block is free, every sequence closed, every slot given back."""
    for tier in (engine.residency.device, engine.residency.host):
        assert tier.pool.free_blocks == tier.pool.blocks
        assert not tier.store.tables
    assert not engine.executor.slots
    assert not engine.batch.staged

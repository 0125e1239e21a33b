"""No plan exceeds its budget by the model's own prediction: random states, prices and promises.

What a plan holds is priced anew, by `LatencyModel.predict` with online correction and margin.
By design it may take longer than until the first deadline

- for LS itself: its decodes always run, and so do MIN_LS_CHUNK_ROWS of its prompts, beside which
  BE gets FREE_SHARE of LS's time;
- for the tokens of one hop, which always have their lanes;
- for what decodes make up for within RECOVERY_TOKENS, if LS prompts or BE's decodes take it;
- for what is paid to a promised share (`Floors`): that belongs to nobody's slack. Prompts that it
  is paid to may make the iteration one of a kind that is corrected otherwise.

A pass without LS has no deadline, and ends where LS comes. Requests that come to the device from
the host are priced at the mean of those on the host.
"""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.floors import PAID_AT_ONCE_S
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import Correction, Curve, LatencyModel, Work, pairs
from omniserve_agent.scheduling.omniserve import (
    FREE_SHARE,
    LONGEST_S,
    MIN_LS_CHUNK_ROWS,
    PRICED_CHUNK_ROWS,
    RECOVERY_TOKENS,
    Omniserve,
)
from omniserve_agent.scheduling.plan import STAGED_CHUNK_ROWS, DeviceChunk, Room
from omniserve_agent.scheduling.slack import least_laxity
from support.scheduling import CAPS, LAYERS

LS, BE = ServiceClass.LS, ServiceClass.BE
NOW_S, KV_BYTES, STAGED_TOKENS, OFFLOADED_TOKENS = 100.0, 1000.0, 300, 100
PROMISED = "default/promised"
CURVES = (  # of a layer: smooth, dear from the second row on, and with steps
    Curve((1, 8, 108), (1e-3, 1e-3, 11e-3)),
    Curve((1, 8, 108), (1e-3, 5e-3, 11e-3)),
    Curve((1, 16, 17, 64, 65, 512), (1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 16e-3)),
)
MODELS = st.builds(
    LatencyModel,
    st.just(LAYERS),
    st.sampled_from(CURVES),
    st.just(Curve((1,), (0.0,))),
    fixed=st.sampled_from((0.0, 2e-3)),
    key=st.sampled_from((0.0, 1e-6)),
    pair=st.sampled_from((0.0, 1e-8)),
    join=st.sampled_from((0.0, 1e-4)),
    host=st.sampled_from((0.0, 1e-8)),
)


@dataclass
class State:
    """What a policy has learned, and what it plans for."""

    model: LatencyModel
    factors: dict[str, float]
    widening: float
    slack_share: float
    owed: bool  # whether the promised service has not had its share
    drafts: int  # beside each row in flight, of one request at most
    most_rows: int = CAPS.max_device_rows  # requests in an iteration
    jobs: list[Job] = field(default_factory=list)

    def policy(self):
        caps = replace(CAPS, max_device_rows=self.most_rows)
        policy = Omniserve(caps, self.model, KV_BYTES, Correction())
        for one in self.jobs:
            if one.service_class is BE:
                policy.arrived(one)
        if self.owed:
            policy.observed(Work(device_rows=1), 0.5)
        policy.correction.factors.update(self.factors)
        policy.error_budget.share = self.slack_share
        policy.error_budget.widening = self.widening
        return policy

    def plan(self, policy):
        index = JobIndex()
        for one in self.jobs:
            one.counted = (0, 0)  # by no other index
            index.add(one)
        return policy.plan(index, self.room, NOW_S)

    @property
    def hop_rows(self):
        """Rows in flight, drafts of one request among them."""
        flying = len(self.at(Stage.HOPPING))
        return flying + self.drafts if flying else 0

    @property
    def room(self):
        drafted = bool(self.drafts and self.hop_rows)
        return Room(
            1000,
            1000,
            64,
            hop_rows=self.hop_rows if drafted else 0,
            longest_hop=1 + self.drafts if drafted else 1,
        )

    def at(self, *stages, service_class=BE):
        return [j for j in self.jobs if j.service_class is service_class and j.stage in stages]


def job(
    handle, service_class, stage, tokens=OFFLOADED_TOKENS, computed=0, promised=False, due=None
):
    at_end = stage in (Stage.DECODE, Stage.BOUNDARY, Stage.HOPPING)
    return Job(
        handle=handle,
        service=PROMISED if promised else f"default/{service_class.value}",
        service_class=service_class,
        priority=0,
        arrival=handle,
        tokens=tokens,
        max_total_tokens=tokens + 100,
        predicted_tokens=tokens + 50,
        computed=tokens - 1 if at_end else min(computed, tokens - 1),
        stage=stage,
        device_blocks=7 if stage in (Stage.PREFILL, Stage.DECODE) else 0,
        host_blocks=7 if stage in (Stage.STAGED, Stage.BOUNDARY, Stage.HOPPING) else 0,
        deadlines=due,
        min_share_percent=30 if promised else 0,
    )


DECODES = st.lists(
    st.tuples(st.floats(0.05, 2), st.floats(0.005, 0.3), st.integers(0, 5)), max_size=6
)
PROMPTS = st.lists(
    st.tuples(
        st.floats(0.05, 2),
        st.integers(1, 600),
        st.sampled_from((Stage.PREFILL, Stage.WAITING)),
        st.sampled_from((0, 0, 2000)),
    ),
    max_size=5,
)


def ls_jobs(decodes, prompts):
    jobs = []
    for handle, (ttft_s, tpot_s, ahead) in enumerate(decodes):
        due = Deadlines(NOW_S - ttft_s / 2, ttft_s, tpot_s)
        due.emitted(NOW_S, 1 + ahead)
        jobs.append(job(handle, LS, Stage.DECODE, due=due))
    for handle, (ttft_s, left, stage, had) in enumerate(prompts, 50):
        had = had if stage is Stage.PREFILL else 0
        due = Deadlines(NOW_S - ttft_s / 2, ttft_s, 0.1)
        jobs.append(job(handle, LS, stage, had + left, had, due=due))
    return jobs


RESIDENTS = st.lists(st.tuples(st.integers(50, 3000), st.booleans()), max_size=10)
CHUNKED = st.lists(st.tuples(st.sampled_from((0, 2000)), st.booleans()), max_size=2)
OFFLOADED = st.lists(
    st.tuples(st.sampled_from((Stage.HOPPING, Stage.BOUNDARY)), st.booleans()), max_size=20
)
STAGED = st.lists(st.booleans(), max_size=2)


@st.composite
def states(draw):
    jobs = ls_jobs(draw(DECODES), draw(PROMPTS))
    for handle, (tokens, promised) in enumerate(draw(RESIDENTS), 100):
        jobs.append(job(handle, BE, Stage.DECODE, tokens, promised=promised))
    for handle, (had, promised) in enumerate(draw(CHUNKED), 200):
        jobs.append(job(handle, BE, Stage.PREFILL, had + 300, had, promised=promised))
    for handle, (stage, promised) in enumerate(draw(OFFLOADED), 300):
        jobs.append(job(handle, BE, stage, promised=promised))
    for handle, promised in enumerate(draw(STAGED), 400):
        jobs.append(job(handle, BE, Stage.STAGED, STAGED_TOKENS, promised=promised))
    if draw(st.booleans()):
        jobs.append(job(500, BE, Stage.WAITING, 200))
    return State(
        draw(MODELS),
        {kind: draw(st.sampled_from((0.7, 1.0, 1.5))) for kind in ("decode", "prefill")},
        widening=draw(st.sampled_from((1.0, 1.4))),
        slack_share=draw(st.sampled_from((0.05, 1.0))),
        owed=draw(st.booleans()),
        drafts=draw(st.integers(0, 3)),
        most_rows=draw(st.sampled_from((7, CAPS.max_device_rows))),
        jobs=jobs,
    )


class Priced:
    """A plan's parts in seconds; `margin` on top of what is expected."""

    def __init__(self, state, margin):
        self.state, self.margin = state, margin

    def expected(self, chunks, lanes=0, staged=0):
        """Of these chunks, with rows that join at layer 0, and row-layers apart from them."""
        decodes = [c.job for c in chunks if c.job.stage in (Stage.DECODE, Stage.BOUNDARY)]
        prompts = [c for c in chunks if c.job.stage in (Stage.PREFILL, Stage.WAITING)]
        layers, rest = divmod(staged, STAGED_TOKENS)
        work = Work(
            device_rows=sum(c.rows for c in chunks),
            joined_rows=[float(lanes)] + [0.0] * (LAYERS - 1),
            chunk_rows=layers * _calls(STAGED_TOKENS) + _calls(rest),
            device_keys=sum(one.tokens for one in decodes),
            device_pairs=sum(pairs(c.job.computed, c.rows) for c in prompts),
            staged_pairs=pairs(0, STAGED_TOKENS) * staged // STAGED_TOKENS,
            host_kv_bytes=lanes * OFFLOADED_TOKENS * KV_BYTES / LAYERS,
        )
        kind = "prefill" if prompts or staged else "decode"
        return self.state.model.predict(work) * self.state.factors[kind]

    def planned(self, chunks, lanes=0, staged=0):
        """The same with the margin."""
        return self.margin * self.expected(chunks, lanes, staged)


def _calls(rows):
    """Dense calls of a layer-major prefill."""
    whole, rest = divmod(rows, STAGED_CHUNK_ROWS)
    return [STAGED_CHUNK_ROWS] * whole + ([rest] if rest else [])


def of_class(chunks, service_class):
    return [c for c in chunks if c.job.service_class is service_class]


def decoding(chunks):
    return [c for c in chunks if c.job.stage in (Stage.DECODE, Stage.BOUNDARY)]


def shortest_chunk(ls):
    """LS decodes, and of its prompts what is computed however late a decode is."""
    least, left = decoding(ls), MIN_LS_CHUNK_ROWS
    for chunk in ls[len(least) :]:
        rows = min(left, chunk.rows)
        left -= rows
        least += [DeviceChunk(chunk.job, rows)] if rows else []
    return least


def slack(state):
    """Until the first token is due that can still be in time, and what decodes may be late by."""
    decodes = [one.deadlines for one in state.at(Stage.DECODE, service_class=LS)]
    factor = state.factors["decode"]
    fastest_s = state.model.predict(Work(device_rows=1, logit_rows=1)) * factor
    due = [one.next_s(NOW_S, 100, fastest_s) for one in decodes]
    slack_s = min((at - NOW_S for at in due if at is not None), default=LONGEST_S)
    if not decodes:
        return slack_s, 0.0
    rows = len(decodes)
    work = Work(device_rows=rows, device_keys=rows * OFFLOADED_TOKENS)
    paces = [one.tpot_s for one, at in zip(decodes, due, strict=True) if at is not None]
    ahead_s = min(paces, default=0.0) - state.model.predict(work) * factor
    return slack_s, RECOVERY_TOKENS * max(0.0, ahead_s)


def paid(state):
    """To a promised share, in seconds, and how much longer what it is paid to makes the rest."""
    promised = any(one.service == PROMISED for one in state.jobs)
    if not (state.owed and promised):
        return 0.0, 1.0
    return PAID_AT_ONCE_S, max(1.0, state.factors["prefill"] / state.factors["decode"])


def laxity(state, policy):
    """Of LS prompts that can be in time."""
    prompts = state.at(Stage.PREFILL, Stage.WAITING, service_class=LS)
    row_s = policy.costs.prompt_s(PRICED_CHUNK_ROWS) / PRICED_CHUNK_ROWS
    return least_laxity(prompts, NOW_S, row_s).slack_s


def check(state):
    policy = state.policy()
    answer = state.plan(policy)
    assert answer == state.plan(state.policy())
    assert len(answer.device) <= state.most_rows
    price = Priced(state, policy.costs.margin)
    check_ls(state, price, of_class(answer.device, LS))
    check_best_effort(state, price, answer, laxity(state, policy))


def check_ls(state, price, ls):
    decodes = state.at(Stage.DECODE, service_class=LS)
    assert [c.job for c in ls[: len(decodes)]] == decodes  # LS decode always runs
    if decodes:
        allowed_s = max(sum(slack(state)), price.expected(shortest_chunk(ls)))
        assert price.expected(ls) <= allowed_s + 1e-9


def check_best_effort(state, price, answer, laxity_s):
    ls, (slack_s, late_s) = of_class(answer.device, LS), slack(state)
    both = [*ls, *of_class(decoding(answer.device), BE)]
    lanes = min(state.hop_rows, answer.join_rows)
    planned_s = price.planned(answer.device, lanes, answer.prefill_row_layers)
    ls_s, made_up_s = price.planned(ls), min(slack_s + late_s, price.planned(both, lanes))
    hop_s = price.planned(both, min(state.hop_rows, state.room.longest_hop)) - price.planned(both)
    allowed_s = max(slack_s, made_up_s, (1 + FREE_SHARE) * ls_s)
    paid_s, kind = paid(state)
    assert planned_s <= (allowed_s + hop_s + paid_s) * kind + 1e-9
    # What BE adds leaves every prompt that could be in time the time it takes.
    assert planned_s / kind - ls_s <= laxity_s + hop_s + paid_s + 1e-9


@settings(max_examples=200, deadline=None)
@given(states())
def test_no_plan_exceeds_its_budget_by_its_own_prediction(state):
    assume(any(one.service_class is LS for one in state.jobs))
    check(state)


def priced(*jobs, owed=False):
    """A state in which attention costs: a key 10 us over all layers, a pair a hundredth of it."""
    model = LatencyModel(LAYERS, CURVES[0], Curve((1,), (0.0,)), key=1e-6, pair=1e-8)
    return State(model, {"decode": 1.0, "prefill": 1.0}, 1.0, 1.0, owed, drafts=0, jobs=[*jobs])


@pytest.mark.parametrize("tpot_s", [0.02, 0.05])
def test_ls_prompts_are_priced_behind_what_they_have(tpot_s):
    check(priced(*ls_jobs([(1.0, tpot_s, 0)], [(2.0, 400, Stage.PREFILL, 2000)])))


def test_prompts_on_the_device_are_priced_as_the_one_that_is_furthest():
    chunks = [job(200, BE, Stage.PREFILL, 10), job(201, BE, Stage.PREFILL, 2246, 2000)]
    check(priced(*ls_jobs([(1.0, 0.1, 0)], []), *chunks))


def test_rows_of_the_service_that_goes_first_are_priced_as_theirs():
    short = [job(100 + n, BE, Stage.DECODE, 50) for n in range(5)]
    owed = [job(110 + n, BE, Stage.DECODE, 3000, promised=True) for n in range(5)]
    check(priced(*ls_jobs([(1.0, 0.02, 0)], []), *short, *owed, owed=True))

"""What an iteration grants to BE's prompts."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from omniserve_agent.scheduling.be_prefill import RowLayers, Seconds
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.error_budgets import ErrorBudgets
from omniserve_agent.scheduling.jobs import Job, ServiceClass, Stage
from omniserve_agent.scheduling.latency import Correction, Curve, LatencyModel
from omniserve_agent.scheduling.plan import STAGED_CHUNK_ROWS
from support.scheduling import CAPS, LAYERS

# A call costs 1 ms whatever it holds up to 8 rows, and 10 us for each further row.
MODEL = LatencyModel(LAYERS, Curve((1, 8, 1008), (1e-3, 1e-3, 11e-3)), Curve((1,), (0.0,)))
COSTS = Costs(MODEL, Correction(), ErrorBudgets())


def staged(handle, remaining, tokens=1000):
    return Job(
        handle=handle,
        service="default/batch",
        service_class=ServiceClass.BE,
        priority=0,
        arrival=handle,
        tokens=tokens,
        max_total_tokens=tokens + 10,
        predicted_tokens=tokens + 10,
        computed=tokens - remaining,
        stage=Stage.STAGED,
    )


def granted(seconds, load=None):
    return Seconds(CAPS, COSTS, load or Load(rows=4, logit_rows=4), seconds)


def time_of(pool, prefills, layers_done=0):
    """Seconds that prefills take which draw `pool` in turn, the first `layers_done` layers on."""
    seconds = 0.0
    for place, job in enumerate(prefills):
        layers = LAYERS - layers_done if place == 0 else LAYERS
        for _ in range(layers):
            left = job.remaining
            while left and pool:
                rows = min(left, pool, STAGED_CHUNK_ROWS)
                seconds += MODEL.dense.at(rows)
                left, pool = left - rows, pool - rows
    return seconds


@given(
    st.floats(0, 0.5),
    st.lists(st.integers(1, 900), min_size=1, max_size=2),
    st.integers(0, LAYERS - 1),
)
@example(0.03125, [129, 257], 8)  # the second's rows are dearer, and the first leaves it most
def test_the_pool_takes_no_longer_than_was_granted(seconds, remaining, done):
    """Whatever comes after whatever, and however far the first has come."""
    allowance = granted(seconds)
    prefills = allowance.together([staged(i, rows) for i, rows in enumerate(remaining)])
    pool = allowance.row_layers(0, 0, prefills)
    # At most one cut chunk more: a pool ends where it ends, not at the end of a chunk.
    assert time_of(pool, prefills, done) <= seconds + MODEL.dense.at(1) + 1e-9


@given(st.floats(0, 0.2), st.integers(0, 500))
def test_rows_on_the_device_take_no_longer_than_was_granted(seconds, context):
    load = Load(rows=5, logit_rows=5)
    rows = Seconds(CAPS, COSTS, load, seconds, context).device_rows(0, [], 10_000)
    assert COSTS.predicted(load.plus(rows)) - COSTS.predicted(load) <= seconds + 1e-12


def test_a_short_remainder_does_not_draw_what_a_long_prompt_was_priced_at():
    long, short = staged(1, 900), staged(2, 20)
    assert granted(1.0).together([long, short]) == [long]
    assert granted(1.0).together([short, long]) == [short, long]


def test_a_short_remainder_is_computed_and_leaves_the_rest_to_the_next():
    """Few rows a call look like poor progress per second, but the request gets its place."""
    short, long = staged(1, 20), staged(2, 900)
    whole = LAYERS * MODEL.dense.at(20)
    assert granted(whole + 1e-9).row_layers(0, 0, [short, long]) == 20 * LAYERS
    more = granted(whole + MODEL.dense.at(256) + 1e-9).row_layers(0, 0, [short, long])
    assert more == 20 * LAYERS + 256


def test_prompts_on_the_device_leave_a_quarter_to_those_for_the_host():
    alone = granted(2e-2).device_rows(0, [], 10_000)
    beside = granted(2e-2).device_rows(0, [staged(1, 900)], 10_000)
    assert beside == pytest.approx(0.75 * alone, abs=2)
    assert granted(2e-2).row_layers(0, beside, [staged(1, 900)]) > 0


def test_a_fixed_amount_is_shared_with_ls_but_for_a_floor():
    fixed, prefills = RowLayers(CAPS), [staged(1, 900)]
    assert fixed.device_rows(0, [], 10_000) == 256
    assert fixed.device_rows(200, prefills, 10_000) == 42
    assert fixed.row_layers(200, 42, prefills) == 14 * LAYERS
    assert fixed.row_layers(1000, 0, prefills) == CAPS.be_prefill_floor_rows * LAYERS
    assert fixed.row_layers(0, 0, []) == 0

"""Tables of core divisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.node.cores import CoreWishes, divide, usable_cores
from omniserve_agent.node.errors import NodeError


def division(cores, engines=1, cuda=False, **wishes):
    return divide(tuple(range(cores)), engines, cuda=cuda, wishes=CoreWishes(**wishes))


@pytest.mark.parametrize(
    ("cores", "cuda", "device", "host", "http", "batch_priority"),
    [
        (2, False, (0,), (1,), (1,), True),
        (3, False, (0, 1), (2,), (2,), True),
        (4, False, (0, 1), (2,), (3,), False),
        (8, False, (0, 1, 2), (3, 4, 5), (6, 7), False),
        (2, True, (0,), (1,), (1,), True),
        (4, True, (0,), (1, 2), (3,), False),
        (16, True, (0,), tuple(range(1, 14)), (14, 15), False),
    ],
)
def test_one_engine(cores, cuda, device, host, http, batch_priority):
    plan = division(cores, cuda=cuda)
    (engine,) = plan.engines
    assert (engine.device, engine.host, plan.http) == (device, host, http)
    assert engine.host_batch_priority is batch_priority
    assert engine.host_spin_us <= 50 or not batch_priority
    assert plan.warnings == ()


def test_two_engines_are_disjoint():
    plan = division(8, engines=2)
    assert [engine.device for engine in plan.engines] == [(0, 1), (2,)]
    assert [engine.host for engine in plan.engines] == [(3, 4), (5,)]
    assert plan.http == (6, 7)


def test_two_engines_on_four_cores_leave_none_for_http():
    plan = division(4, engines=2)
    assert [engine.device for engine in plan.engines] == [(0,), (1,)]
    assert [engine.host for engine in plan.engines] == [(2,), (3,)]
    assert plan.http == (2, 3)
    assert all(engine.host_batch_priority for engine in plan.engines)


def test_too_few_cores_are_refused_with_figures():
    with pytest.raises(NodeError, match=r"2 engines .* need 4 cores.*2 cores \(0,1\).*share-cores"):
        division(2, engines=2)


def test_shared_cores_come_with_a_warning():
    plan = division(2, engines=2, share=True)
    assert [(e.device, e.host) for e in plan.engines] == [((0,), (1,))] * 2
    assert all(engine.host_batch_priority for engine in plan.engines)
    (warning,) = plan.warnings
    assert "SLOs are not promised" in warning


def test_one_core_serves_with_a_warning():
    plan = division(1)
    assert (plan.engines[0].device, plan.engines[0].host, plan.http) == ((0,), (0,), (0,))
    assert plan.warnings


@pytest.mark.parametrize(
    ("wishes", "device", "host", "http"),
    [
        ({"device": (2, 3)}, (2, 3), (0, 1, 4, 5), (6, 7)),
        ({"host": (0, 1)}, (2, 3, 4, 5), (0, 1), (6, 7)),
        ({"device": (0,), "host": (1, 2, 3)}, (0,), (1, 2, 3), (4, 5, 6, 7)),
        ({"device": (0, 1, 2, 3), "host": (4, 5, 6, 7)}, (0, 1, 2, 3), (4, 5, 6, 7), (4, 5, 6, 7)),
    ],
)
def test_wishes(wishes, device, host, http):
    plan = division(8, **wishes)
    (engine,) = plan.engines
    assert (engine.device, engine.host, plan.http) == (device, host, http)


@pytest.mark.parametrize(
    ("wishes", "engines", "message"),
    [
        ({"device": (8,)}, 1, r"--device-cores 8: core 8 is not usable here; use some of 0,1,2"),
        ({"host": (1, 99)}, 1, r"--host-cores 1,99: core 99 is not usable"),
        ({"device": (0, 1), "host": (1, 2)}, 1, r"both name core 1; make them disjoint"),
        ({"device": (0,), "host": (1, 2)}, 2, r"there are 1 \(0\) and 2 \(1,2\)"),
        ({"device": tuple(range(8))}, 1, r"core 0 is both a device core and a host core"),
    ],
)
def test_bad_wishes(wishes, engines, message):
    with pytest.raises(NodeError, match=message):
        division(8, engines=engines, **wishes)


@given(
    cores=st.sets(st.integers(0, 200), min_size=1, max_size=64),
    engines=st.integers(1, 8),
    cuda=st.booleans(),
)
def test_divisions_are_disjoint_and_complete_or_refused(cores, engines, cuda):
    if len(cores) < 2 * engines:
        if len(cores) > 1 or engines > 1:
            with pytest.raises(NodeError):
                divide(sorted(cores), engines, cuda=cuda, wishes=CoreWishes())
        return
    plan = divide(sorted(cores), engines, cuda=cuda, wishes=CoreWishes())
    taken = [core for e in plan.engines for core in (*e.device, *e.host)]
    assert len(set(taken)) == len(taken)
    assert set(taken) | set(plan.http) == cores
    assert all(e.device and e.host for e in plan.engines)
    assert bool(set(taken) & set(plan.http)) == plan.engines[0].host_batch_priority


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"),
    [
        ({0, 1, 2, 3}, None, (0, 1, 2, 3)),
        ({4, 7, 5}, 2.9, (4, 5)),
        ({0, 1}, 0.5, (0,)),
        ({0, 1}, 16.0, (0, 1)),
    ],
)
def test_usable_cores(affinity, quota, usable):
    assert usable_cores(affinity, quota) == usable

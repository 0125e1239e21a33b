"""Who leaves the model cache."""

from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.node.cluster.eviction import CachedModel, Eviction, evict

OLD, MIDDLE, NEW = (CachedModel(name, 10, used) for name, used in (("o", 1), ("m", 2), ("n", 3)))


def test_nothing_goes_where_there_is_room():
    assert evict([OLD, NEW], needed_bytes=5, free_bytes=5) == Eviction()


def test_the_least_recently_used_go_and_no_more_than_needed():
    assert evict([NEW, OLD, MIDDLE], needed_bytes=15, free_bytes=0) == Eviction(("o", "m"))


def test_what_is_in_use_stays():
    used = CachedModel("o", 10, 1, in_use=True)
    assert evict([used, MIDDLE, NEW], needed_bytes=10, free_bytes=0) == Eviction(("m",))


def test_nothing_goes_for_a_model_that_does_not_fit_all_the_same():
    used = CachedModel("u", 10, 0, in_use=True)
    assert evict([used, OLD], needed_bytes=31, free_bytes=5) == Eviction((), 16)


models = st.lists(
    st.builds(
        CachedModel, st.uuids().map(str), st.integers(0, 100), st.integers(0, 9), st.booleans()
    ),
    max_size=12,
)


@given(models, st.integers(0, 900), st.integers(0, 300))
def test_an_eviction_is_enough_and_minimal(cached, needed, free):
    by_name = {model.name: model for model in cached}
    eviction = evict(cached, needed, free)
    gone = [by_name[name] for name in eviction.names]
    assert not any(model.in_use for model in gone)
    if eviction.missing_bytes:
        unused = sum(model.size_bytes for model in cached if not model.in_use)
        assert eviction.missing_bytes == needed - free - unused
        assert not gone
    else:
        assert free + sum(model.size_bytes for model in gone) >= needed
        assert not gone or free + sum(model.size_bytes for model in gone[:-1]) < needed
        kept = [m for m in cached if not m.in_use and m.name not in eviction.names]
        assert all(model.used_s <= other.used_s for model in gone for other in kept)

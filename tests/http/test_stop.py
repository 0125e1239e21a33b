"""Stop strings: the result depends on the text only, never on how it was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_agent.http.stop import StopFilter


def play(stops, pieces):
    """(emitted text, whether stopped, the emissions)."""
    stop_filter = StopFilter(stops)
    emitted = []
    for piece in pieces:
        text, stopped = stop_filter.push(piece)
        emitted.append(text)
        if stopped:
            return "".join(emitted), True, emitted
    emitted.append(stop_filter.flush())
    return "".join(emitted), False, emitted


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "stopped"),
    [
        ([], ["a", "b"], "ab", False),
        (["END"], ["xE", "N", "Dy"], "x", True),
        (["END"], ["xE", "N", "E", "ND"], "xEN", True),
        (["END"], ["xEN"], "xEN", False),
        (["aab"], ["a", "a", "a", "b"], "a", True),
        (["abcd", "bc"], ["abcd"], "a", True),
        (["bc", "abc"], ["abc"], "", True),
        (["\n\n"], ["a\n", "\nb"], "a", True),
        (["日本"], ["日", "本"], "", True),
    ],
)
def test_table(stops, pieces, text, stopped):
    assert play(stops, pieces)[:2] == (text, stopped)


def test_text_that_cannot_become_a_stop_string_is_not_held():
    assert play(["STOP"], ["abc", "S", "x"])[2] == ["abc", "", "Sx", ""]


cuts = st.lists(st.text("ab", min_size=1, max_size=3), max_size=12)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4)


@given(stop_lists, cuts)
def test_cutting_makes_no_difference(stops, pieces):
    whole = "".join(pieces)
    text, stopped, _ = play(stops, pieces)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    assert stopped == bool(ends)
    if stopped:
        end = min(ends)
        starts = [end - len(stop) for stop in stops if whole[:end].endswith(stop)]
        assert text == whole[: min(starts)]
    else:
        assert text == whole
    assert play(stops, list(whole))[:2] == (text, stopped)

"""What the simulator is held against."""

from colocation_client import CellFigures, LsResult
from simulator import Line, measured


def test_an_engines_tokens_are_its_own():
    """The client counts the tokens of the CPU-only engine apart."""
    figures = CellFigures(
        requests=[LsResult(0.0, 200, 50.0, 5.0, 20, 0.0), LsResult(0.0, 200, 150.0, 5.0, 20, 0.0)],
        seconds=10.0,
        be_tokens=1000,
        overflow_tokens=200,
        ceilings={},
        engine={},
        client_cpu_share=0.0,
    )
    assert measured(Line({"slo": [100, 10]}, figures)) == (0.5, 100.0)

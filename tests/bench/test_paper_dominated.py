"""Who dominates in the rows of `make simulate`."""

from itertools import product

from rich.console import Console

from paper_dominated import dominated, is_dominated, show, sustained
from support.paper_rows import row


def test_who_has_as_much_of_both_and_clearly_more_of_one_dominates():
    own = row("omniserve", 0.99, 100.0)

    def better(attained, be):
        return is_dominated(own, row("static_headroom", attained, be))

    assert better(0.99, 101.5)
    assert better(0.993, 100.0)
    assert not better(0.991, 100.5)  # neither is clearly more
    assert not better(0.98, 200.0)
    assert not better(1.0, 99.0)


def test_settings_and_pairings_are_counted_and_printed():
    own = product(("load", "slo"), (1, 2))
    rows = [row("omniserve", 0.99, 100.0, part, rate) for part, rate in own]
    rows += [row("static_headroom", 1.0, 110.0, "load", 1), row("gpu_only_priority", 1.0, 110.0)]
    rows += [row("static_headroom", 1.0, 90.0, "load", 2), row("ls_alone", 1.0, 0.0)]
    rows += [row("synchronous_offload", 0.5, 200.0, "slo", 1)]
    load, slo, total = dominated(rows)
    assert load["by"] == {"static_headroom": [1, 2], "gpu_only_priority": [1, 1]}
    assert (load["by_any"], load["settings"]) == (1, 2)
    assert (slo["by_any"], slo["settings"]) == (0, 1)
    assert (total["pairings_dominated"], total["pairings"]) == (2, 4)
    console = Console(width=160, record=True)
    show(console, dominated(rows))
    said = "dominated by another policy in 1 of 3 settings, 2 of 4 pairings"
    assert said in console.export_text()


def test_tokens_of_prompts_computed_before_do_not_last():
    """Of DailyMails a prompt token brings a fifth of an output token."""
    figures = {"be_workload": "dailymails", "be_prefill_tokens_per_s": 1000.0}
    assert 195 < sustained(row("omniserve", 1.0, 300.0) | figures)["be_tokens_per_s"] < 210
    assert sustained(row("omniserve", 1.0, 100.0) | figures)["be_tokens_per_s"] == 100.0

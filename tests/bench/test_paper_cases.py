"""What `make simulate` runs."""

from collections import Counter

from paper_cases import ABLATIONS, STEADY, STEADY_ABLATION, case_of, cases

ALL = cases()


def test_no_case_comes_twice():
    assert max(Counter(ALL).values()) == 1


def test_a_row_names_its_run():
    for case in cases(3):
        again = case_of(case.labels(), 3)
        assert again.labels() == case.labels() | {"tries_refused": False}
    assert sum(case.tries_refused for case in ALL) == 2  # a model each


def hosts_of(part, **wanted):
    """CPU-only hosts and network of omniserve's runs in a part, and in part `memory`."""
    fields = {"policy": "omniserve", "device_share": 0.08} | wanted
    return {
        (case.cpu_hosts, case.network_gbps)
        for case in ALL
        if case.part in (part, "memory") and fields.items() <= case.labels().items()
    }


def test_hosts_and_network_are_varied_where_kv_is_scarce():
    for model, be in (("llama-2-70b", "decode-heavy"), ("yi-34b", "dailymails")):
        setting = {"model": model, "be_workload": be}
        assert hosts_of("scarce hosts", **setting) == {(n, 100.0) for n in range(5)}
        assert (4, 10.0) in hosts_of("scarce network", **setting)


def test_the_steady_state_has_hosts_and_network_too_and_no_more_runs_than_it_needs():
    steady = [case for case in ALL if case.part == STEADY]
    hosts = {(case.cpu_hosts, case.network_gbps) for case in steady}
    assert hosts == {(0, 100.0), (4, 100.0), (4, 10.0)}
    local = {case.policy for case in steady if case.cpu_hosts == 0}
    assert local == {"omniserve", "static_headroom", "gpu_only_priority"}
    assert len(steady) == 2 * 2 + 3


def test_what_two_parts_ask_for_alike_is_one_run():
    def keys(part, **fields):
        found = [c for c in ALL if c.part == part and fields.items() <= c.labels().items()]
        return [case.run_key(200.0) for case in found]

    own = {"policy": "omniserve", "cpu_hosts": 4, "device_share": 0.08, "network_gbps": 100.0}
    assert keys(STEADY, **own) == keys(STEADY_ABLATION, ablation="as it is")
    alone = keys("ablation", ablation="as it is")
    assert alone == keys("memory", be_workload="decode-heavy", **own)
    ablations = keys("ablation")
    assert all(one not in ablations[:at] for at, one in enumerate(ablations))
    assert len(ablations) == len(ABLATIONS)

"""What `make simulate` runs: the settings of the paper's evaluation (SIGMOD 2026), and ours.

Yi-34B and Llama-2-70B on 4 A100 with 0 to 4 CPU-only hosts, ShareGPT-like LS, LongBench-v2-like
and DailyMails-like BE without end; decode-heavy BE where KV is scarce.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from omniserve_agent.scheduling.admission import AdmissionMode

SLOS = {"yi-34b": (2.0, 0.2), "llama-2-70b": (3.0, 0.25)}
RATES = {"yi-34b": (1, 2, 4, 6, 8), "llama-2-70b": (1, 2, 3, 4, 5)}
OVERLOAD = {"yi-34b": 32, "llama-2-70b": 14}  # requests per second, where admission matters
PAPER_BE = ("longbench-v2", "dailymails")
SHARES = (0.125, 0.08)  # of the device's KV: what is left where memory is contended
SCARCE = SHARES[-1]
POLICIES = ("omniserve", "static_headroom", "gpu_only_priority", "synchronous_offload", "ls_alone")
STEADY_POLICIES = POLICIES[:3]
HOSTS_USED_BY = ("omniserve", "static_headroom", "synchronous_offload")  # CPU-only hosts
DRAFTS = "drafts: up to 7 guesses, half right"
ABLATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    DRAFTS: {"drafts": 7, "acceptance": 0.5},
    "sweeps off": {"sweeps": False},
    "same-iteration joins off": {"same_iteration_joins": False},
    "no prompts for the host": {"host_prompts": False},
    "residency off": {"be_device_residency": False},
    "int8 KV on": {"int8_kv": True},
    "admission on": {"admission": AdmissionMode.REJECT},
    "error budget off": {"error_budget": False},
}
# Once as many requests end as begin LS is never idle, so that sweeps change nothing, and what
# concerns LS alone shows in the ramp.
STEADY_ABLATIONS = (
    "as it is",
    DRAFTS,
    "same-iteration joins off",
    "no prompts for the host",
    "residency off",
    "int8 KV on",
)
# Times the usual length: a request on the host lives for many minutes. In the steady parts the
# first two thirds, until as many end as begin, do not count.
STEADY, STEADY_ABLATION = "steady", "ablation, steady"
LONGER = dict.fromkeys(("memory", "scarce hosts", "scarce network", "ablation", "admission"), 3)
LONGER |= {STEADY: 27, STEADY_ABLATION: 27}
WARM_UP = {STEADY: 2 / 3, STEADY_ABLATION: 2 / 3}  # of a run; a quarter elsewhere


@dataclass(frozen=True)
class Case:
    """One run. `part` says which of the evaluation's questions it belongs to."""

    part: str
    model: str
    be: str
    rate: float
    policy: str
    cpu_hosts: int = 0
    network_gbps: float = 100.0
    tpot_slo_ms: int = 0  # 0: the model's own
    arrivals: str = "poisson"
    admission: str = "off"
    ablation: str = ""
    device_share: float = 1.0  # of the device's KV blocks: less makes memory contended
    seed: int = 0
    tries_refused: bool = False  # lets refused requests in, to see what becomes of them: minutes

    def seconds(self, usual: float) -> float:
        """Virtual ones of the run."""
        return usual * LONGER.get(self.part, 1)

    def warm_up(self) -> float:
        """The part of them that does not count."""
        return WARM_UP.get(self.part, 1 / 4)

    def labels(self) -> dict[str, Any]:
        """What its row in paper.json says of it."""
        labels = asdict(self) | {"load": self.part, "be_workload": self.be}
        labels["tpot_slo_ms"] = self.tpot_slo_ms or round(SLOS[self.model][1] * 1e3)
        del labels["be"]
        return labels

    def run_key(self, usual_seconds: float) -> dict[str, Any]:
        """What its figures depend on: two parts that ask for the same run have the same."""
        key = asdict(self) | {"changes": ABLATIONS.get(self.ablation, {})}
        key |= {"seconds": self.seconds(usual_seconds), "warm_up": self.warm_up()}
        del key["part"], key["ablation"]
        return key


def case_of(row: dict[str, Any], seed: int) -> Case:
    """The run of a row, with another seed; without what is tried once."""
    fields = {name: row[name] for name in Case.__dataclass_fields__ if name != "be"}
    return replace(Case(be=row["be_workload"], **fields), seed=seed, tries_refused=False)


def cases(seed: int = 0) -> list[Case]:
    """The whole evaluation."""
    found = [case for model in RATES for be in PAPER_BE for case in _of_model(model, be)]
    for model in RATES:
        over = Case("admission", model, "dailymails", OVERLOAD[model], "")
        found += [replace(over, admission=mode) for mode in ("off", "reject", "queue")]
    found += _where_kv_is_scarce()
    every = [replace(case, policy=name) for case in found for name in _policies(case)]
    every = [replace(case, tries_refused=_is_our_reject(case)) for case in every]
    return [replace(case, seed=seed) for case in every + _ablations()]


def _is_our_reject(case: Case) -> bool:
    return case.admission == "reject" and case.policy == "omniserve"


def _policies(case: Case) -> tuple[str, ...]:
    """Those that the case tells apart: what uses no CPU-only host runs without them alone."""
    if case.part == STEADY:  # minutes each: the rivals whose LS attains there
        return STEADY_POLICIES[: 2 if case.cpu_hosts else 3]
    if case.cpu_hosts:
        return HOSTS_USED_BY
    return POLICIES[:1] if case.admission == "queue" else POLICIES  # held back: ours alone


def _of_model(model: str, be: str) -> list[Case]:
    """What the paper varies, at the model's heaviest load."""
    heavy = Case("load", model, be, RATES[model][-1], "")
    found = [replace(heavy, rate=r) for r in RATES[model]]
    found += [replace(heavy, part="hosts", cpu_hosts=n) for n in (1, 4)]
    found += [replace(heavy, part="network", cpu_hosts=4, network_gbps=10.0)]
    found += [replace(heavy, part="slo", tpot_slo_ms=ms) for ms in (150, 100, 75, 50)]
    found += [replace(heavy, part="bursty", arrivals="bursty")]
    return found + _shares(heavy)


def _shares(heavy: Case) -> list[Case]:
    """Less and less device KV; CPU hosts where it is least."""
    memory = replace(heavy, part="memory")
    found = [replace(memory, device_share=s) for s in SHARES]
    return [*found, replace(memory, cpu_hosts=4, device_share=SCARCE)]


def _where_kv_is_scarce() -> list[Case]:
    """Hosts and network where the device holds too little; part `memory` has 0 and 4 hosts."""
    heavy = Case("memory", "llama-2-70b", "decode-heavy", RATES["llama-2-70b"][-1], "")
    found = _shares(heavy)
    for base in (heavy, replace(heavy, model="yi-34b", be="dailymails", rate=RATES["yi-34b"][-1])):
        scarce = replace(base, device_share=SCARCE)
        found += [replace(scarce, part="scarce hosts", cpu_hosts=n) for n in (1, 2, 3)]
        found += [replace(scarce, part="scarce network", cpu_hosts=4, network_gbps=10.0)]
    steady = replace(heavy, part=STEADY, device_share=SCARCE)
    found += [replace(steady, cpu_hosts=n) for n in (0, 4)]
    return [*found, replace(steady, cpu_hosts=4, network_gbps=10.0)]


def _ablations() -> list[Case]:
    """In the ramp, without LS, and once as many requests end as begin."""
    rate = RATES["llama-2-70b"][-1]
    base = Case("ablation", "llama-2-70b", "decode-heavy", rate, "omniserve", 4)
    base = replace(base, device_share=SCARCE)
    bases = (base, replace(base, part="ablation, no LS", rate=0.01))
    found = [replace(b, ablation=name) for b in bases for name in ABLATIONS]
    steady = replace(base, part=STEADY_ABLATION)
    return found + [replace(steady, ablation=name) for name in STEADY_ABLATIONS]

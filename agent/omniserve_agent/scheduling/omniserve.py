"""The SLO-driven policy: every iteration's caps come from deadlines and the latency model.

It carries no headroom. Order and room are those of `FixedCaps`; what is fixed there is granted
here: how many LS prompt rows, how many BE rows on the device, how many join lanes and how much BE
prefill fit before the earliest deadline, and of those as much as maximises BE progress per second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from omniserve_agent.scheduling.be_places import coming
from omniserve_agent.scheduling.be_prefill import Seconds
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.device_rows import Until, be_device_rows
from omniserve_agent.scheduling.error_budgets import ErrorBudgets
from omniserve_agent.scheduling.filling import Grant
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.floors import NOTHING, Floors, Owed
from omniserve_agent.scheduling.host_worth import PRICED_CHUNK_ROWS, host_pays, prompts_per_token_s
from omniserve_agent.scheduling.in_flight import InFlight
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.join_lanes import Joins
from omniserve_agent.scheduling.latency import Correction, LatencyModel, Work, pairs
from omniserve_agent.scheduling.ls_memory import arrival_blocks, wanted
from omniserve_agent.scheduling.plan import Caps, Plan, PolicyState, Room, Terms
from omniserve_agent.scheduling.slack import Pace, Prompts, decode_slack, least_laxity
from omniserve_agent.scheduling.sweeps import Sweeps
from omniserve_agent.scheduling.traffic import Arrivals, slack_share

LS, BE = ServiceClass.LS, ServiceClass.BE
IDLE_BUDGET_S = 0.25  # of an iteration while no LS service has been seen
LONGEST_S = 1.0  # no iteration is planned longer, whatever the deadlines allow
RECOVERY_TOKENS = 4  # TPOT is a mean: a decode that gave way to a prompt catches up over so many
MIN_LS_CHUNK_ROWS = 16  # LS prefill never stands still, even where a decode is already late
FREE_SHARE = 0.01  # of LS's own time: joins below a step edge cost about nothing, always let in
ONE_ROW = Load(rows=1, logit_rows=1)
LEAST_IDLE_ROWS = 16  # of a BE prompt where nothing else runs, whatever the budget


@dataclass(frozen=True, slots=True)
class _Time:
    """What the iteration may take, in seconds."""

    ls_s: float  # LS alone
    decode_s: float  # with BE rows that decode
    prefill_s: float  # with BE prompts as well


class _Ls(NamedTuple):
    """LS in an iteration."""

    prompts: Prompts
    rows: int  # of its prompts
    load: Load  # decodes and prompts
    time: _Time
    kept_blocks: int  # of the device, for prompts to come
    short: bool  # of device KV


class _Bound(NamedTuple):
    """The first fields of `PolicyState`, by their names."""

    budget_s: float = 0.0
    ls_s: float = 0.0
    planned_s: float = 0.0
    prompts_s: float = 0.0
    ls_lacks_kv: bool = False


@dataclass
class Omniserve:
    """See the module. `caps` bound what budgets may grow to."""

    caps: Caps
    model: LatencyModel
    kv_bytes: float = 0.0  # of one token on the host, all layers
    correction: Correction = field(default_factory=Correction)
    error_budget: ErrorBudgets = field(default_factory=ErrorBudgets)
    _bound: _Bound = field(default_factory=lambda: _Bound())
    _arrivals: Arrivals = field(default_factory=Arrivals)

    def __post_init__(self) -> None:
        self.costs = Costs(self.model, self.correction, self.error_budget)
        self._flights = InFlight(self.caps.layers)
        self._floors = Floors()
        self._sweeps = Sweeps(self.caps.layers)
        self._fixed = FixedCaps(self.caps)
        self._granted: Grant | None = None
        self._lanes = self.caps.join_rows
        self._rowless = 0  # iterations in a row that had no row for BE on the device

    # ---- events ----------------------------------------------------------------------------

    def arrived(self, job: Job) -> None:
        """LS traffic tells what may arrive next; a BE job may be promised a share."""
        due = job.deadlines
        if due is not None:
            # One that could not attain on an idle device is nothing to be ready for.
            if self.costs.prompt_s(job.remaining) <= due.ttft_s * self.costs.margin:
                kv_tokens = job.new_tokens(self.caps.block_tokens)
                self._arrivals.arrived(
                    job.service, job.remaining, due.ttft_s, due.arrival_s, kv_tokens
                )
            self.error_budget.arrived(job.service, job.objective, due.arrival_s)
        self._floors.arrived(job)

    def observed(self, work: Work, seconds: float) -> None:
        """An iteration took this long."""
        if not work.waited:
            self.correction.observe(kind_of(work), self.model.predict(work), seconds)
        self._sweeps.observed(work, seconds, self.model)
        if work.joined_rows:
            self._flights.observed(work.joined_rows, work.lanes or self._lanes)
        self._floors.observed(work, seconds, self.model)

    def expects(self, work: Work) -> float:
        """See `Policy`: corrected, without the margin."""
        return self.correction.apply(kind_of(work), self.model.predict(work))

    def judged(self, service: str, attained: bool, now_s: float) -> None:
        """An LS request ended: the slow loop of its service's budget."""
        self.error_budget.judged(service, attained, now_s)

    @property
    def state(self) -> PolicyState:
        """See `Policy`."""
        return PolicyState(
            **self._bound._asdict(),
            margin=self.costs.margin,
            quantile=self.error_budget.quantile,
            widening=self.error_budget.widening,
            slack_share=self.error_budget.share,
            burn=self.error_budget.burn,
            burns=self.error_budget.burns(),
        )

    # ---- plan ------------------------------------------------------------------------------

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """The next iteration within the deadlines."""
        self._settle(jobs, room, now_s)
        ls = self._ls(jobs, room, now_s)
        floor, time = self._floors.owed(jobs), ls.time
        be_rows, load = self._be_rows(jobs, room, ls, floor)
        joins_s, _ = self._floor_left(floor, load, time.decode_s)
        self._lanes, load = self._joined(jobs, room, load, max(time.decode_s, joins_s))
        _, floor_s = self._floor_left(floor, load, time.decode_s)
        hidden_s = self._sweep(jobs, load)
        prefill_s = time.prefill_s if hidden_s is None else min(time.prefill_s, hidden_s)
        waits = be_rows < jobs.count(BE, Stage.DECODE) and not floor_s
        planned_s = self.costs.seconds(load)
        self._bound = _Bound(time.decode_s, time.ls_s, planned_s, prefill_s, ls.short)
        pays = hidden_s is not None or host_pays(jobs, self.costs, self.caps.layers, ls.load, load)
        requests = jobs.count(LS, Stage.DECODE) + _ls_chunks(jobs) + be_rows
        self._granted = Grant(
            device_rows=min(self.caps.max_device_rows, requests),
            ls_prefill_rows=ls.rows,
            be_prefill=self._be_prefill(jobs, room, load, prefill_s, floor_s, waits),
            join_rows=self._lanes,
            spare_lanes=self._spare_lanes(),
            entries=self.caps.join_rows,
            be_host_admissions=self.caps.be_host_admissions and pays,
            ls_prompts=ls.prompts.order,
            be_first=floor.service,
            sweeps=hidden_s is not None,
            arrival_blocks=ls.kept_blocks,
            be_rows=be_rows,
            # A token takes a pass through all layers there: no remedy for one iteration.
            first_leaves=self._rowless > self.caps.layers,
        )
        return self._fixed.fill(jobs, room, self._granted)

    def _settle(self, jobs: JobIndex, room: Room, now_s: float) -> None:
        """What time has changed since the last plan."""
        self.error_budget.settle(now_s)
        self._arrivals.settle(now_s)
        self.costs.refresh()
        self._flights.settle(room.hop_rows or jobs.count(BE, Stage.HOPPING))

    def _ls(self, jobs: JobIndex, room: Room, now_s: float) -> _Ls:
        """LS of the iteration, and the time it leaves."""
        # A prompt as long as what may come might miss anyway: a BE row does not wait for it.
        arrival_s = max(self._arrivals.slack_s(self.costs.prompt_s), self.costs.seconds(ONE_ROW))
        decode = ls_decode(jobs)
        prompts = self._ls_prompts(jobs, now_s, arrival_s)
        pace = self._pace(jobs, now_s, arrival_s)
        late_s = RECOVERY_TOKENS * max(0.0, pace.tpot_s - self.costs.expected(decode))
        kept = arrival_blocks(self._arrivals, self.caps)
        wants = wanted(jobs, room, prompts.order, self.caps, kept)
        rows = self._ls_rows(wants.rows, prompts, decode, pace.slack_s + late_s)
        load = decode.plus(rows, rows > 0, 0, prompt_pairs(prompts.order, rows))
        time = self._time(jobs, prompts, decode, load, pace, late_s, wants.short)
        return _Ls(prompts, rows, load, time, kept, wants.short)

    def _be_rows(self, jobs: JobIndex, room: Room, ls: _Ls, floor: Owed) -> tuple[int, Load]:
        """BE rows that decode on the device, and the load with them."""
        time = ls.time
        until = Until(
            time.decode_s,
            time.prefill_s,
            time.ls_s + floor.seconds,
            floor.decoding,
            floor.service,
        )
        come = coming(jobs, self.caps, room, ls.kept_blocks)
        rows, load = be_device_rows(jobs, self.costs, self.caps, ls.load, until, come)
        self._rowless = self._rowless + 1 if rows == 0 else 0
        return rows, load

    def terms(self, jobs: JobIndex) -> Terms:
        """See `Policy`: those of the last plan."""
        grant = self._granted
        if grant is None:
            return Terms(self.caps)
        return Terms(
            self.caps,
            host_pays=grant.be_host_admissions,
            be_rows=grant.be_rows,
            be_first=grant.be_first,
            arrival_blocks=grant.arrival_blocks or 0,
        )

    def _sweep(self, jobs: JobIndex, load: Load) -> float | None:
        """None where the iteration is no sweep; else seconds up to which prompts do not hold it up.

        That is as long as the host attends, where its rows fill the lanes: more of them would bring
        nothing while no LS row makes them wait. Else prompts go first, as in every iteration.
        """
        # Rows, guesses among them: who begins a token brings its own once it is under way.
        in_flight = self._flights.total + jobs.count(BE, Stage.BOUNDARY)
        has_ls = jobs.count(LS, Stage.DECODE) or _ls_chunks(jobs)
        if has_ls or not in_flight or not self.caps.sweeps:
            return None
        joining = min(in_flight, self.caps.join_rows)
        swept_s = self.costs.predicted(load.joined(((joining, self.caps.layers),)))
        seconds = self.costs.predicted(load)
        token_s = prompts_per_token_s(jobs, self.costs, self.caps.layers)
        if not self._sweeps.pay(load.rows, in_flight, joining, swept_s, seconds, token_s):
            return None
        self._lanes = joining
        return inf if joining == in_flight else swept_s + self._sweeps.host_s(joining)

    def _time(
        self,
        jobs: JobIndex,
        prompts: Prompts,
        decode: Load,
        ls: Load,
        pace: Pace,
        late_s: float,
        short: bool,
    ) -> _Time:
        """What BE adds may neither break a decode's deadline nor eat a waiting prompt's laxity.

        Where LS prompts wait for KV that LS holds (`short`), whatever makes iterations longer makes
        them wait longer: BE gets what costs next to nothing.

        BE decodes cost little each and go on beside an LS prompt while LS is on its pace: they
        make LS late by no more than it makes up for. BE prefill waits for slack beyond what LS
        requests save for bursts of prompts, and for LS to leave memory.
        """
        ls_s = self.costs.seconds(ls)
        slack_s = max(0.0, min(pace.saving_s - ls_s, prompts.slack_s))
        share = self._slack_share(jobs, ls) * (self.error_budget.share if ls.rows else 1.0)
        prefill_s = ls_s + (0.0 if short else slack_s * share)
        if pace.slack_s < self.costs.expected(decode):
            return _Time(ls_s, prefill_s, prefill_s)
        free_s = FREE_SHARE * ls_s
        spare_s = free_s if short else max(pace.slack_s + late_s - ls_s, free_s)
        spare_s = min(spare_s, prompts.slack_s)
        return _Time(ls_s, max(prefill_s, ls_s + spare_s), prefill_s)

    def _pace(self, jobs: JobIndex, now_s: float, arrival_s: float) -> Pace:
        """Until the earliest deadline of a row, or of an arrival that may come now; TPOT 0 where no
        row decodes."""
        fastest_s = self.costs.expected(ONE_ROW)
        saved = 1.0 - self.error_budget.share
        decoding = jobs.at(LS, Stage.DECODE)
        found = decode_slack(decoding, jobs.decode_deadlines(), now_s, fastest_s, saved)
        most_s = max(0.0, min(LONGEST_S, arrival_s, inf if self._arrivals else IDLE_BUDGET_S))
        tpot_s = found.tpot_s if found.tpot_s < inf else 0.0
        return Pace(min(most_s, found.slack_s), min(most_s, found.saving_s), tpot_s)

    def _slack_share(self, jobs: JobIndex, ls: Load) -> float:
        """Nothing for BE while LS lacks memory; less of the slack the more LS holds."""
        if jobs.at(LS, Stage.SWAPPED):
            return 0.0
        device_tokens = self.caps.device_blocks * self.caps.block_tokens
        held = jobs.held_once(ls.keys) + ls.rows  # prompts under way count by their rows
        return slack_share(held, device_tokens, ls.rows, self.caps.max_device_rows)

    def _ls_prompts(self, jobs: JobIndex, now_s: float, arrival_s: float) -> Prompts:
        waiting = [*jobs.at(LS, Stage.PREFILL), *jobs.at(LS, Stage.WAITING)]
        if not waiting:
            return Prompts()
        row_s = self.costs.prompt_s(PRICED_CHUNK_ROWS) / PRICED_CHUNK_ROWS
        found = least_laxity(waiting, now_s, row_s)
        behind_s = arrival_s - found.ahead_s  # an arrival comes behind them
        slack_s = max(0.0, min(found.slack_s, behind_s))
        return Prompts(found.order, slack_s, found.ahead_s)

    def _ls_rows(self, most: int, prompts: Prompts, decode: Load, budget_s: float) -> int:
        """LS prompt rows that fit beside the decodes; never none while a prompt has its KV.

        Without the margin: that is BE's to pay, or doubt would cost LS its first tokens.
        """
        if not decode.rows or not most:
            return most
        least = min(MIN_LS_CHUNK_ROWS, most)
        return self.costs.prompt_rows(
            decode, least, most, budget_s, lambda rows: prompt_pairs(prompts.order, rows)
        )

    def _floor_left(self, floor: Owed, load: Load, decode_s: float) -> tuple[float, float]:
        """What BE rows on the device, and joins where there are some, have not spent of it: until
        when joins may take, and for prompts."""
        if floor is NOTHING:
            return 0.0, 0.0
        seconds = self.costs.seconds(load)
        left_s = max(0.0, floor.seconds - max(0.0, seconds - decode_s))
        return seconds + floor.hopping * left_s, min(left_s, floor.prompts_s)

    def _joined(self, jobs: JobIndex, room: Room, load: Load, budget_s: float) -> tuple[int, Load]:
        """Lanes per layer, and the load with the rows that join. Rows in flight always keep one
        lane, or as many as the tokens of one of them, which join together."""
        most = self.caps.join_rows
        if not jobs.count(BE, Stage.HOPPING):
            return most, load
        others = self.caps.layers * (load.logit_rows - jobs.count(LS, Stage.DECODE))
        host_bytes = jobs.offloaded_mean * self.kv_bytes if self.model.host else 0.0
        step_bytes = host_bytes / self.caps.layers
        alone_s = self.costs.predicted(load)
        joins = Joins(
            self.costs, self._flights, self.caps, load, max(0, others), step_bytes, alone_s
        )
        lanes = joins.lanes(min(room.longest_hop, most), budget_s)
        return lanes, load.joined(self._flights.runs(lanes), step_bytes)

    def _spare_lanes(self) -> int:
        """Where every row that is expected back has a lane, lanes do not bind BE."""
        bound = self._lanes < self._flights.most_ready
        return 0 if bound else self.caps.join_rows - self._lanes

    def _be_prefill(
        self,
        jobs: JobIndex,
        room: Room,
        load: Load,
        budget_s: float,
        floor_s: float,
        waits: bool,
    ) -> Seconds:
        """Time for BE's prompts: what is left; for the host only the promised share while rows
        queue for a slot, for the device none while rows there wait.

        A request costs its prompt's marginal time however that is cut, and its share of decoding
        iterations, which is the smaller the more rows decode at once. So prompts go first while
        there are places for more decoding rows (docs/decisions/0004).
        """
        chunked = jobs.at(BE, Stage.PREFILL)
        context = max([job.computed for job in chunked], default=0)
        factor = self.costs.factor("prefill")
        queued = jobs.count(BE, Stage.BOUNDARY) - room.free_slots
        spare_s = budget_s - self.costs.predicted(load) * factor
        seconds = max(floor_s, spare_s)
        if not load.rows and not jobs.count(BE, Stage.HOPPING):  # nobody else goes on
            least = load.plus(LEAST_IDLE_ROWS, 0, 0, pairs(context, LEAST_IDLE_ROWS))
            least_s = self.costs.predicted(least) - self.costs.predicted(load)
            seconds = max(seconds, 2 * factor * least_s)
        host_s = floor_s if queued > self.caps.join_rows else seconds
        return Seconds(
            self.caps,
            self.costs,
            load,
            seconds=max(0.0, seconds) / factor,
            host_s=max(0.0, host_s) / factor,
            context=context,
            device=not waits,
        )


def kind_of(work: Work) -> str:
    """Kinds of iterations are corrected apart; a `sweep` waits for the host."""
    if work.waited:
        return "sweep"
    return "prefill" if work.chunk_rows or work.device_pairs else "decode"


def ls_decode(jobs: JobIndex) -> Load:
    """The LS rows that decode."""
    decoding = jobs.at(LS, Stage.DECODE)
    count = len(decoding)
    return Load(rows=count, logit_rows=count, keys=sum([job.tokens for job in decoding]))


def prompt_pairs(order: Sequence[Job], rows: int) -> int:
    """Query-key pairs of so many rows of prompts in this order, behind what each has by now."""
    total = 0
    for job in order:
        if rows <= 0:
            break
        chunk = min(job.remaining, rows)
        total += pairs(job.context, chunk)
        rows -= chunk
    return total


def _ls_chunks(jobs: JobIndex) -> int:
    return jobs.count(LS, Stage.PREFILL, Stage.WAITING, Stage.SWAPPED)

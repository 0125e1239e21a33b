"""What an iteration costs, priced many times per plan: the latency model with its curve tabled.

`Load` is an iteration as sums; `Costs.seconds` is `LatencyModel.predict` of the same work (a test
holds them together), corrected online and with the margin on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from omniserve_agent.scheduling.budget import Choice, best, largest_fitting
from omniserve_agent.scheduling.error_budgets import ErrorBudgets
from omniserve_agent.scheduling.latency import Correction, Curve, LatencyModel, Work, pairs

Runs = tuple[tuple[int, int], ...]  # (rows that join, ascending; at how many layers), all layers
TABLED_ROWS = 4096


class Load(NamedTuple):
    """What the device would do beside layer-major prefills."""

    rows: int = 0  # device rows at every layer
    logit_rows: int = 0
    keys: int = 0  # Σ KV length over decode rows
    pairs: int = 0  # Σ query-key pairs over prefill chunks
    joins: Runs = ()
    step_bytes: float = 0.0  # host KV that one row which joins at one layer has read, on the mean

    def plus(self, rows: int, logit_rows: int = 0, keys: int = 0, pairs: int = 0) -> Load:
        """With further device rows."""
        return Load(
            self.rows + rows,
            self.logit_rows + logit_rows,
            self.keys + keys,
            self.pairs + pairs,
            self.joins,
            self.step_bytes,
        )

    def joined(self, joins: Runs, step_bytes: float = 0.0) -> Load:
        """With these joins instead."""
        return Load(self.rows, self.logit_rows, self.keys, self.pairs, joins, step_bytes)

    def prompt(self, rows: int) -> Load:
        """With prompt rows that end in a token."""
        return self.plus(rows, rows > 0, 0, pairs(0, rows))

    @property
    def kind(self) -> str:
        """As `kind_of` the work it comes to, layer-major prefills aside."""
        return "prefill" if self.pairs else "decode"

    def work(self) -> Work:
        """The same for `LatencyModel.predict`."""
        return Work(
            device_rows=self.rows,
            joined_rows=[float(rows) for rows, layers in self.joins for _ in range(layers)],
            logit_rows=self.logit_rows,
            device_keys=self.keys,
            device_pairs=self.pairs,
            host_kv_bytes=self.step_bytes * sum([rows * layers for rows, layers in self.joins]),
        )


@dataclass(slots=True)
class Costs:
    """Prices of one engine."""

    model: LatencyModel
    correction: Correction
    error_budget: ErrorBudgets
    margin: float = 1.0  # what predictions are lengthened by to hold as often as the budget asks
    edges: tuple[int, ...] = ()  # rows after which the dense modules step up
    _dense: list[float] = field(default_factory=list)
    _head: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.edges = self.model.dense.edges()
        self._dense = _tabled(self.model.dense)
        self._head = _tabled(self.model.head)
        self.refresh()

    def refresh(self) -> None:
        """Take in what was observed: prices stay as they are from here to the next call."""
        quantile = self.correction.margin(self.error_budget.quantile)
        self.margin = max(1.0, quantile) * self.error_budget.widening

    def factor(self, kind: str) -> float:
        """Predicted to planned seconds: the online correction and the margin."""
        return self.correction.factors.get(kind, 1.0) * self.margin

    def seconds(self, load: Load, kind: str | None = None) -> float:
        """What an iteration is planned to take, corrected as `kind` (its own if None)."""
        return self.predicted(load) * self.factor(kind or load.kind)

    def expected(self, load: Load) -> float:
        """What it will take on the average: corrected, without the margin."""
        return self.correction.apply(load.kind, self.predicted(load))

    def prompt_s(self, rows: int) -> float:
        """`seconds` of an iteration with these prompt rows alone."""
        model = self.model
        per_layer_s = self.dense(rows) + model.pair * pairs(0, rows)
        predicted_s = model.fixed + model.layers * per_layer_s + self.head(1)
        return predicted_s * self.factor("prefill")

    def prompt_rows(
        self, load: Load, low: int, high: int, budget_s: float, pairs_of: Callable[[int], int]
    ) -> int:
        """The most prompt rows in [low, high] for which `load` with them is `expected` to take no
        longer than the budget; `low` where none are. `load` has no joins; `pairs_of` so many rows
        are theirs."""
        model, factor = self.model, self.correction.factors.get("prefill", 1.0)
        keys_s, head_s = model.key * load.keys, self.head(load.logit_rows + 1)

        def fits(rows: int) -> bool:
            added_s = model.pair * (load.pairs + pairs_of(rows))
            per_layer_s = self.dense(load.rows + rows) + keys_s + added_s
            return (model.fixed + model.layers * per_layer_s + head_s) * factor <= budget_s

        return largest_fitting(low, high, fits)

    def predicted(self, load: Load) -> float:
        """As the latency model has it."""
        model, rows = self.model, load.rows
        per_layer_s = self.dense(rows) + model.key * load.keys + model.pair * load.pairs
        seconds = model.fixed + model.layers * per_layer_s + self.head(load.logit_rows)
        if not load.joins:
            return seconds
        return seconds + self.joins_s(rows, load.joins, load.step_bytes)

    def worthwhile(
        self,
        rows: int,
        fitting: int,
        seconds: Callable[[int], float],
        whole: Callable[[int], Choice] | None = None,
    ) -> int:
        """Of `fitting` rows that fit beside `rows` others: all, or as many as fill up to a step
        edge on the way, whichever makes the most rows per second of the batch.

        All rows count. What LS asks for per second is given, so that a batch that becomes less
        efficient takes from BE what it seems to bring. `seconds` prices so many further rows;
        `whole` all of them, where others would come on top.
        """
        amounts = [edge - rows for edge in self.edges if rows < edge < rows + fitting]
        if not amounts:
            return fitting
        choices = [Choice(n, rows + n, seconds(n)) for n in amounts]
        last = whole(fitting) if whole else Choice(fitting, rows + fitting, seconds(fitting))
        return best([*choices, last]).amount

    def joins_s(self, rows: int, joins: Runs, step_bytes: float = 0.0) -> float:
        """What these joins add to `predicted` beside `rows` device rows: what the host reads
        meanwhile, `step_bytes` for each row and layer, is a part of a join's price."""
        alone_s, join_s = self.dense(rows), self.model.join
        if step_bytes:
            join_s += self.model.host * step_bytes
        if rows + joins[-1][0] < TABLED_ROWS:  # runs ascend
            table = self._dense
            return sum([at * (table[rows + n] - alone_s + join_s * n) for n, at in joins])
        return sum([at * (self.dense(rows + n) - alone_s + join_s * n) for n, at in joins])

    def dense(self, rows: int) -> float:
        """One layer's dense modules."""
        return self._dense[rows] if rows < TABLED_ROWS else self.model.dense.at(rows)

    def head(self, rows: int) -> float:
        """Logits of so many rows."""
        return self._head[rows] if rows < TABLED_ROWS else self.model.head.at(rows)

    def staged_call_s(self, rows: int, context: int) -> float:
        """One dense call of a layer-major prefill: `rows` rows behind `context` tokens."""
        return self.dense(rows) + self.model.pair * pairs(context, rows)

    def staged_pool(self, seconds: float, chunk: int, context: int) -> int:
        """Row-layers that fit: whole chunks as they come, and what is left of the last."""
        call_s = self.staged_call_s(chunk, context)
        if call_s <= 0.0 or seconds <= 0.0:
            return 0
        calls = int(seconds / call_s)
        left_s, low, high = seconds - calls * call_s, 0, chunk - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.staged_call_s(middle, context) <= left_s:
                low = middle
            else:
                high = middle - 1
        return calls * chunk + low

    def staged_s(self, row_layers: int, chunk: int, context: int) -> float:
        """The reverse: what a pool of so many row-layers takes."""
        calls, left = divmod(row_layers, chunk)
        rest = self.staged_call_s(left, context) if left else 0.0
        return calls * self.staged_call_s(chunk, context) + rest


def _tabled(curve: Curve) -> list[float]:
    return [curve.at(rows) for rows in range(TABLED_ROWS)]

"""One request inside the engine: its tokens, its KV in both tiers, its job for the policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from omniserve_agent.engine.kv.tables import KvTable, PrefixNames
from omniserve_agent.engine.messages import Submit
from omniserve_agent.scheduling.jobs import Job


@dataclass(eq=False)
class Request:
    """Mutable state of one request, owned by the engine's loop.

    `tokens` are the known ones (prompt, then output); `job.tokens` counts those on their way back
    as well. `draft` holds guessed tokens that travel behind the last one in its present hop.
    """

    submit: Submit
    job: Job
    names: PrefixNames
    stop_ids: frozenset[int]
    tokens: list[int]
    needs_history: bool = False  # its sampling needs every output token known
    device: KvTable | None = None
    host: KvTable | None = None
    copied_tokens: int = 0  # device-resident BE: host KV is valid up to here
    rounded: bool = False  # its device KV came back from an inexact host tier
    slot: int | None = None
    draft: list[int] = field(default_factory=list)
    pending: int = 0  # rows launched whose token is not known yet
    cached_tokens: int | None = None  # prompt tokens found in a cache; None once reported

    @property
    def handle(self) -> int:
        """The engine's number for it."""
        return self.job.handle

    @property
    def waits(self) -> bool:
        """Whether no row may follow until every token is known: a choice needs them, or the token
        on its way back is the last there can be."""
        return self.needs_history or self.job.tokens >= self.job.max_total_tokens

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt as submitted."""
        return len(self.submit.prompt)

    @property
    def output_tokens(self) -> int:
        """How many output tokens there are so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def output(self) -> list[int]:
        """Output tokens so far, those before an engine restart included."""
        return self.tokens[self.prompt_tokens :]

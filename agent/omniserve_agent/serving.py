"""The seam between HTTP and the node: what a served service is, and what its engine looks like.

`http` calls a `Backend`; `node` implements it over an engine process; tests bring their own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from omniserve_agent.engine.messages import (
    OBJECTIVE_PERCENT,
    OBJECTIVE_WINDOW_S,
    Ready,
    RefusalReason,
    ServiceClass,
    Stats,
    Submit,
    TokenEvent,
)

FOR_CAPACITY: tuple[RefusalReason, ...] = ("queue_full", "slo")


class EngineUnavailableError(Exception):
    """The engine died, is restarting or did not answer: HTTP 503."""


class RequestRefusedError(Exception):
    """The engine did not take the request.

    `reason` `queue_full` and `slo` are HTTP 429 with `Retry-After`; the others are the caller's
    error, 400.
    """

    def __init__(
        self,
        reason: RefusalReason,
        message: str,
        retry_after_s: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class Backend(Protocol):
    """One engine as the API process sees it."""

    @property
    def ready(self) -> Ready | None:
        """The engine's limits, or None while it is not there."""

    @property
    def progress(self) -> str:
        """One line about start-up or the last failure, for `/readyz` and the terminal."""

    @property
    def stats(self) -> Stats | None:
        """The last figures, or None."""

    @property
    def restarts(self) -> int:
        """How often the engine process was started again."""

    def stream(self, submit: Submit) -> AsyncGenerator[TokenEvent]:
        """Token events until one has `finish_reason`. Closing the generator cancels the request.

        Raises EngineUnavailableError (LS: at once when the engine dies; BE: after its replays are
        used up) and RequestRefusedError.
        """

    async def explain(self, request_ids: Sequence[str]) -> dict[str, str]:
        """What each of these requests waits for now, empty: nothing; without those that have ended.

        Raises EngineUnavailableError, RequestRefusedError (too many ask) and TimeoutError.
        """

    def judged(self, service: str, attained: bool) -> None:
        """Tell the engine whether an LS request of `namespace/name` was delivered within its
        SLO."""


@dataclass(frozen=True)
class Slo:
    """An LS service's objective; times in milliseconds."""

    ttft_ms: int
    tpot_ms: int
    objective_percent: int = OBJECTIVE_PERCENT
    window_s: int = OBJECTIVE_WINDOW_S
    min_samples: int = 20


@dataclass(frozen=True)
class ServedService:
    """One LLMService on this agent, ready to be routed to."""

    namespace: str
    name: str
    served_name: str  # the OpenAI `model` value
    service_class: ServiceClass
    backend: Backend
    tokenizer_dir: str
    max_model_len: int | None = None
    slo: Slo | None = None  # LS only
    priority: int = 0
    min_share_percent: int = 0  # BE only: its floor of the time of iterations
    paused: bool = False
    api_keys: frozenset[str] = field(default_factory=frozenset)
    requires_key: bool = False  # whether it stays shut while no key is known
    uid: str = ""  # of the LLMService object, in a cluster

    @property
    def key(self) -> str:
        """`namespace/name`, as in figures and readiness paths."""
        return f"{self.namespace}/{self.name}"

    @property
    def is_open(self) -> bool:
        """Whether it may be used without a key."""
        return not self.api_keys and not self.requires_key

"""Requests in and out of the engine: what is taken, what is refused, when a request is done."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import msgspec

from omniserve_agent.engine.kv.tables import PrefixNames
from omniserve_agent.engine.messages import (
    RefusalReason,
    Refused,
    SamplingParams,
    ServiceClass,
    Submit,
)
from omniserve_agent.engine.requests import Request
from omniserve_agent.scheduling.deadlines import Deadlines
from omniserve_agent.scheduling.error_budgets import Objective
from omniserve_agent.scheduling.jobs import Job, JobIndex, Stage
from omniserve_agent.scheduling.lengths import OutputLengths
from omniserve_agent.scheduling.predictions import predicted_tokens
from omniserve_agent.scheduling.queue_pace import QueuePace

WAITING_STAGES = (Stage.WAITING, Stage.SWAPPED)


# An SLO is judged where events are written. From the choice of a token to there it takes a while
# (`Submit.delivery_ms`), and that varies: the pace inside is set so much tighter.
DELIVERY_JITTER = 0.015
MOST_FOR_DELIVERY = 0.5  # of the TTFT objective


@dataclass(frozen=True)
class IntakeLimits:
    """What the engine can hold. Tokens are prompt and output together."""

    max_request_tokens: Mapping[ServiceClass, int]
    max_waiting: int
    slots: int
    vocab_size: int
    eos_token_ids: frozenset[int] = frozenset()
    check_sampling: Callable[[SamplingParams], None] = lambda _: None  # ValueError: bad parameter


def needs_history(params: SamplingParams) -> bool:
    """Whether a choice depends on the request's earlier output tokens."""
    return (
        params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or params.repetition_penalty != 1.0
    )


@dataclass(eq=False)
class Intake:
    """The requests the engine knows, by handle and by id."""

    limits: IntakeLimits
    jobs: JobIndex
    lengths: OutputLengths
    block_tokens: int
    look_up: Callable[[Request], None] = lambda _: None  # tells its job what of it is cached
    requests: dict[int, Request] = field(default_factory=dict)
    _by_id: dict[str, Request] = field(default_factory=dict)
    _arrivals: int = 0
    _queues: dict[ServiceClass, QueuePace] = field(
        default_factory=lambda: {each: QueuePace() for each in ServiceClass}
    )

    def submit(self, submit: Submit, now_s: float = 0.0) -> Refused | Request:
        """Take a request that came at `now_s`, or say why not."""
        prepared = self.prepare(submit, now_s)
        if isinstance(prepared, Request):
            self.accept(prepared, now_s)
        return prepared

    def prepare(self, submit: Submit, now_s: float) -> Refused | Request:
        """What `submit` would take; nothing knows of it before `accept`."""
        refused = self._refusal(submit, now_s)
        if refused is not None:
            return refused
        self._arrivals += 1
        request = self._request(submit, self._arrivals, now_s)
        self.look_up(request)
        return request

    def accept(self, request: Request, now_s: float) -> None:
        """Take a prepared request."""
        service_class = request.job.service_class
        self._queues[service_class].came(now_s, self._waiting(service_class))
        self.requests[request.handle] = request
        self._by_id[request.submit.request_id] = request
        self.jobs.add(request.job)

    def begun(self, request: Request, now_s: float) -> None:
        """It waits no longer."""
        service_class = request.job.service_class
        self._queues[service_class].left(now_s, self._waiting(service_class))

    def find(self, request_id: str) -> Request | None:
        """The request of this id, unless it has ended."""
        return self._by_id.get(request_id)

    def forget(self, request: Request) -> None:
        """It has ended."""
        del self.requests[request.handle]
        del self._by_id[request.submit.request_id]

    def finish_reason(self, request: Request) -> Literal["stop", "length"] | None:
        """Whether the token just appended ends the request."""
        last = request.tokens[-1]
        if last in request.stop_ids:
            return "stop"
        if len(request.tokens) >= request.job.max_total_tokens:
            return "length"
        return None

    def _refusal(self, submit: Submit, now_s: float) -> Refused | None:
        problem = self._bad_request(submit)
        if problem is not None:
            return _refused(submit, "bad_request", problem)
        service_class = submit.service_class
        limit = self.limits.max_request_tokens[service_class]
        known = len(submit.prompt) + len(submit.emitted)
        if known >= limit:
            return _refused(
                submit,
                "too_long",
                f"the prompt has {known} tokens; {service_class} requests of this engine "
                f"may have {limit} tokens, prompt and output together",
            )
        waiting = self._waiting(service_class)
        if waiting >= self.limits.max_waiting:
            full = _refused(
                submit,
                "queue_full",
                f"{waiting} {service_class} requests are waiting, "
                f"the limit is {self.limits.max_waiting}",
            )
            room_s = self._queues[service_class].room_s(now_s)
            return msgspec.structs.replace(full, retry_after_s=room_s)
        return None

    def _waiting(self, service_class: ServiceClass) -> int:
        return self.jobs.count(service_class, *WAITING_STAGES)

    def _bad_request(self, submit: Submit) -> str | None:
        """What is wrong with it whatever the engine's state; None: nothing."""
        if not submit.prompt or submit.max_tokens < 1:
            return (
                f"prompt has {len(submit.prompt)} tokens and max_tokens is {submit.max_tokens}: "
                "both must be at least 1"
            )
        if len(submit.emitted) >= submit.max_tokens:
            return (
                f"emitted has {len(submit.emitted)} tokens and max_tokens is {submit.max_tokens}: "
                "nothing is left to generate"
            )
        if submit.request_id in self._by_id:
            return f"request id {submit.request_id} is running"
        highest = self.limits.vocab_size - 1
        for token in chain(submit.prompt, submit.emitted):
            if not 0 <= token <= highest:
                return f"prompt: token id {token} is unknown; ids are 0 to {highest}"
        try:
            self.limits.check_sampling(submit.sampling)
        except ValueError as error:
            return str(error)
        return None

    def _request(self, submit: Submit, arrival: int, now_s: float) -> Request:
        limit = self.limits.max_request_tokens[submit.service_class]
        tokens = [*submit.prompt, *submit.emitted]
        max_total = min(len(submit.prompt) + submit.max_tokens, limit)
        expected = self.lengths.expected(submit.service)
        job = Job(
            handle=arrival,
            service=submit.service,
            service_class=submit.service_class,
            priority=submit.priority,
            arrival=arrival,
            tokens=len(tokens),
            max_total_tokens=max_total,
            predicted_tokens=predicted_tokens(len(submit.prompt), expected, len(tokens), max_total),
            prompt_tokens=len(submit.prompt),
            deadlines=_deadlines(submit, now_s),
            objective=Objective(submit.objective_percent / 100, submit.objective_window_s),
            prompt=_prompt_name(submit, self.block_tokens),
            min_share_percent=submit.min_share_percent,
        )
        eos = frozenset() if submit.ignore_eos else self.limits.eos_token_ids
        return Request(
            submit=submit,
            job=job,
            names=PrefixNames(submit.cache_salt, self.block_tokens),
            stop_ids=eos | frozenset(submit.stop_token_ids),
            tokens=tokens,
            needs_history=needs_history(submit.sampling),
        )


def _prompt_name(submit: Submit, block_tokens: int) -> int | None:
    """Equal for requests of one whole prompt; None where it fills no block.

    Cheap, since every request that comes is named: the hash chain of its blocks is left to its
    admission, or goes as far as an LS prompt is found in the cache.
    """
    if len(submit.prompt) <= block_tokens:
        return None
    return hash((submit.cache_salt, array("i", submit.prompt).tobytes()))


def _deadlines(submit: Submit, now_s: float) -> Deadlines | None:
    if submit.ttft_slo_ms is None or submit.tpot_slo_ms is None:
        return None
    received_s = now_s if submit.received_s is None else min(submit.received_s, now_s)
    delivery_ms = min(submit.delivery_ms, MOST_FOR_DELIVERY * submit.ttft_slo_ms)
    ttft_s = (submit.ttft_slo_ms - delivery_ms) / 1e3
    return Deadlines(received_s, ttft_s, (1.0 - DELIVERY_JITTER) * submit.tpot_slo_ms / 1e3)


def _refused(submit: Submit, reason: RefusalReason, message: str) -> Refused:
    return Refused(request_id=submit.request_id, reason=reason, message=message)

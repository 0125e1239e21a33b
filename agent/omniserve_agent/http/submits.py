"""From a checked request to what the engine is told, pure: limits, seeds, choices."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from omniserve_agent.engine.messages import (
    OBJECTIVE_PERCENT,
    OBJECTIVE_WINDOW_S,
    SamplingParams,
    Submit,
)
from omniserve_agent.http.delivery import FIRST_GUESS_S
from omniserve_agent.http.errors import invalid
from omniserve_agent.http.protocol import MAX_STOP_CHARS, MAX_STOPS, Sampling
from omniserve_agent.serving import ServedService


@dataclass(frozen=True)
class Job:
    """A request as the engine side needs it. `prompts` hold token ids; `prompt_field` and
    `limit_field` are the request's names for them, for error messages."""

    service: ServedService
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    seed: int
    logprobs: int | None
    max_tokens: int | None
    vocabulary_size: int
    prompt_field: str
    limit_field: str = "max_tokens"
    eos_id: int | None = None


@dataclass(frozen=True)
class Came:
    """When a request came, on the monotonic clock, and how long its first token will be on its way
    from the engine, in seconds."""

    received_s: float | None = None
    delivery_s: float = FIRST_GUESS_S


def submits(
    job: Job, limit_tokens: int, max_choices: int, came: Came | None = None
) -> list[Submit]:
    """`n` submits per prompt, prompt by prompt; ApiError 400 if one cannot be."""
    count = len(job.prompts) * job.sampling.n
    if count > max_choices:
        raise invalid(
            f"{len(job.prompts)} prompts with n {job.sampling.n} are {count} choices; "
            f"ask for at most {max_choices}",
            "n",
        )
    bias = _bias(job)
    return [
        _submit(
            job,
            list(prompt),
            _output_tokens(job, len(prompt), limit_tokens),
            choice,
            bias,
            came or Came(),
        )
        for prompt in job.prompts
        for choice in range(job.sampling.n)
    ]


def stop_strings(sampling: Sampling) -> list[str]:
    """The stop strings as a list; ApiError 400 if too many, too long or empty."""
    stops = [sampling.stop] if isinstance(sampling.stop, str) else sampling.stop or []
    if len(stops) > MAX_STOPS:
        raise invalid(f"stop has {len(stops)} strings; give at most {MAX_STOPS}", "stop")
    for stop in stops:
        if not 0 < len(stop) <= MAX_STOP_CHARS:
            raise invalid(
                f"stop holds a string of {len(stop)} characters; use 1 to {MAX_STOP_CHARS}", "stop"
            )
    return stops


def choice_seed(seed: int, choice: int) -> int:
    """Seed of one choice, 0 to 2^63-1; choice 0 has the request's own."""
    if choice == 0:
        return seed % 2**63
    digest = hashlib.sha256(f"{seed}:{choice}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


def _output_tokens(job: Job, prompt_tokens: int, limit_tokens: int) -> int:
    room = limit_tokens - prompt_tokens
    name = job.service.served_name
    if prompt_tokens == 0:
        raise invalid(f"{job.prompt_field} is empty; give at least one token", job.prompt_field)
    if room < 1:
        raise invalid(
            f"{job.prompt_field} has {prompt_tokens} tokens; model {name!r} takes at most "
            f"{limit_tokens}, prompt and output together; shorten it",
            job.prompt_field,
            "context_length_exceeded",
        )
    if job.max_tokens is not None and job.max_tokens > room:
        raise invalid(
            f"{job.prompt_field} has {prompt_tokens} tokens and {job.limit_field} is "
            f"{job.max_tokens}; model {name!r} takes at most {limit_tokens} together: ask for at "
            f"most {room}",
            job.limit_field,
            "context_length_exceeded",
        )
    return room if job.max_tokens is None else job.max_tokens


def _bias(job: Job) -> dict[int, float]:
    if len(job.sampling.logit_bias) > 1024:
        raise invalid(
            f"logit_bias has {len(job.sampling.logit_bias)} entries; give at most 1024",
            "logit_bias",
        )
    bias = {}
    for key, value in job.sampling.logit_bias.items():
        if not (key.isascii() and key.isdigit()) or int(key) >= job.vocabulary_size:
            raise invalid(
                f"logit_bias names token {key!r}; use token ids 0 to {job.vocabulary_size - 1}",
                "logit_bias",
            )
        bias[int(key)] = value
    return bias


def _submit(
    job: Job,
    prompt: list[int],
    max_tokens: int,
    choice: int,
    bias: dict[int, float],
    came: Came,
) -> Submit:
    service, wanted, slo = job.service, job.sampling, job.service.slo
    return Submit(
        request_id=uuid.uuid4().hex,
        service=service.key,
        service_class=service.service_class,
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=SamplingParams(
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            top_k=max(0, wanted.top_k),
            min_p=wanted.min_p,
            presence_penalty=wanted.presence_penalty,
            frequency_penalty=wanted.frequency_penalty,
            repetition_penalty=wanted.repetition_penalty,
            seed=choice_seed(job.seed, choice),
            logprobs=job.logprobs,
            logit_bias=bias,
        ),
        # The tokenizer may name an end token that the model's own configuration lacks.
        stop_token_ids=[] if job.eos_id is None or wanted.ignore_eos else [job.eos_id],
        ignore_eos=wanted.ignore_eos,
        priority=service.priority,
        cache_salt=service.namespace,
        ttft_slo_ms=slo.ttft_ms if slo else None,
        tpot_slo_ms=slo.tpot_ms if slo else None,
        objective_percent=slo.objective_percent if slo else OBJECTIVE_PERCENT,
        objective_window_s=slo.window_s if slo else OBJECTIVE_WINDOW_S,
        received_s=came.received_s,
        sender_judges=slo is not None,
        delivery_ms=1e3 * came.delivery_s,
        min_share_percent=service.min_share_percent,
    )

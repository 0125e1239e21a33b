"""From a job to its HTTP response, streamed or in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, aclosing

from aiohttp import web

from omniserve_agent.http.account import account_of
from omniserve_agent.http.arrival import Arrival
from omniserve_agent.http.choice import ChoiceText
from omniserve_agent.http.errors import client_gone, json_response, translated
from omniserve_agent.http.generation import Format, Run, Usage, Whole, chunks, limit_tokens, running
from omniserve_agent.http.log import log_unexpected
from omniserve_agent.http.records import ClientGoneError
from omniserve_agent.http.state import State
from omniserve_agent.http.streaming import EventStream
from omniserve_agent.http.submits import Came, Job, stop_strings, submits
from omniserve_agent.http.tokenizer import ModelTokenizer

Running = AbstractAsyncContextManager[Run]


async def respond(
    request: web.Request,
    state: State,
    arrival: Arrival,
    job: Job,
    tokenizer: ModelTokenizer,
    output_format: Format,
    *,
    continues_text: bool,
) -> web.StreamResponse:
    """Run the job and write the answer. `continues_text`: outputs go on where their prompts end."""
    stops = stop_strings(job.sampling)
    limit = limit_tokens(state, job.service)
    came = Came(arrival.received_s, state.books.deliveries.allowance_s)
    wanted = submits(job, limit, state.settings.max_choices, came)
    texts = [
        ChoiceText(i, tokenizer.detokenizer(s.prompt if continues_text else ()), stops)
        for i, s in enumerate(wanted)
    ]
    arrival.submitted = True
    run = running(state, job.service, wanted, texts, job.sampling.n, arrival)
    if job.sampling.stream:
        options = job.sampling.stream_options
        with_usage = options is not None and options.include_usage
        return await _stream(request, state, run, output_format, with_usage)
    return await _whole(request, state, run, output_format, len(wanted))


async def _stream(
    request: web.Request, state: State, context: Running, output_format: Format, with_usage: bool
) -> web.StreamResponse:
    events = EventStream(request, state.settings.write_timeout_s)
    try:
        usage = await _write_events(request, state, context, output_format, events)
        if with_usage:
            await events.send(output_format.usage_event(usage))
        await events.done()
    except ClientGoneError as error:
        if not events.started:
            raise client_gone() from error
        account_of(request).failed(client_gone())
    except Exception as error:
        if not events.started:
            raise translated(error) from error
        log_unexpected(error)
        account_of(request).failed(translated(error))
        await events.fail(translated(error))
    return events.response


async def _write_events(
    request: web.Request,
    state: State,
    context: Running,
    output_format: Format,
    events: EventStream,
) -> Usage:
    opened: set[int] = set()
    async with context as run, aclosing(chunks(request, state, run)) as incoming:
        async for chunk in incoming:
            if chunk is None:
                await events.comment()
                continue
            opening = None if chunk.index in opened else output_format.opening(chunk.index)
            opened.add(chunk.index)
            event = output_format.event(chunk)
            await events.send(*([event] if opening is None else [opening, event]))
            run.wrote(chunk)
        return run.usage


async def _whole(
    request: web.Request, state: State, context: Running, output_format: Format, count: int
) -> web.Response:
    try:
        choices, usage = await _collect(request, state, context, count)
    except ClientGoneError as error:
        raise client_gone() from error
    except Exception as error:
        raise translated(error) from error
    return json_response(output_format.whole(choices, usage))


async def _collect(
    request: web.Request, state: State, context: Running, count: int
) -> tuple[Sequence[Whole], Usage]:
    choices = [Whole() for _ in range(count)]
    async with context as run, aclosing(chunks(request, state, run)) as incoming:
        async for chunk in incoming:
            if chunk is None:
                continue
            choice = choices[chunk.index]
            choice.text += chunk.text
            choice.scored += chunk.scored
            choice.finish_reason = chunk.finish_reason
            run.wrote(chunk)
        return choices, run.usage

"""An engine as the API process sees it: requests in, token events out, across engine lives.

The supervisor attaches a link when it starts a process, hands over what the engine says, and
detaches when the process is gone. LS requests end with their engine; BE requests are kept and sent
to the next one from prompt and emitted tokens. Tokens count as emitted when they arrive here, and a
link dies with its process, so none is lost or delivered twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from omniserve_agent.engine.messages import (
    Cancel,
    Explain,
    Explained,
    Failed,
    FromEngine,
    Judged,
    Loading,
    Outputs,
    Ready,
    Refused,
    Stats,
    Submit,
    ToEngine,
    TokenEvent,
)
from omniserve_agent.node.assignments import cache_salt
from omniserve_agent.node.requests import Request
from omniserve_agent.serving import EngineUnavailableError, RequestRefusedError

MOST_QUESTIONS = 8  # at once: each takes time of the loop
ANSWER_S = 5.0

Send = Callable[[ToEngine], None]


class EngineClient:
    """`serving.Backend` over whichever engine process is attached."""

    def __init__(self, name: str, *, max_replays: int, max_waiting: int) -> None:
        self.name = name
        self._max_replays = max_replays
        self._max_waiting = max_waiting  # BE requests: kept here, and unstarted in the engine
        self._requests: dict[str, Request] = {}  # in order of arrival
        self._held: deque[Request] = deque()  # BE, to be sent when there is room
        self._unstarted: set[str] = set()  # BE in the engine without an event yet
        self._send: Send | None = None
        self._ready: Ready | None = None
        self._stats: Stats | None = None
        self._progress = "the engine has not been started"
        self._given_up = False
        self._was_ready = False
        self._lives = 0
        self._questions: dict[int, asyncio.Future[dict[str, str]]] = {}
        self._asked = 0

    @property
    def ready(self) -> Ready | None:
        """The engine's limits, or None while it is not there."""
        return self._ready

    @property
    def progress(self) -> str:
        """One line about start-up or the last failure."""
        return self._progress

    @property
    def stats(self) -> Stats | None:
        """The last figures of the engine that is there, or None."""
        return self._stats

    @property
    def restarts(self) -> int:
        """How often the engine process was started again."""
        return max(0, self._lives - 1)

    @property
    def was_ready(self) -> bool:
        """Whether any of its processes has been ready."""
        return self._was_ready

    @property
    def active(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def open_requests(self, service: str) -> list[tuple[int, int]]:
        """(emitted, most) output tokens of each request of `namespace/name` that has not ended."""
        return [
            (len(request.emitted), request.submit.max_tokens)
            for request in self._requests.values()
            if request.submit.service == service
        ]

    async def stream(self, submit: Submit) -> AsyncGenerator[TokenEvent]:
        """Token events until one has `finish_reason`; closing the generator cancels.

        Raises EngineUnavailableError and RequestRefusedError as `serving.Backend` says.
        """
        request = self._admit(submit)
        try:
            while True:
                event = await request.mailbox.take()
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self._forget(request)

    async def explain(self, request_ids: Sequence[str]) -> dict[str, str]:
        """See `serving.Backend`."""
        held = {request.submit.request_id for request in self._held}
        known = [request_id for request_id in request_ids if request_id in self._requests]
        here = {request_id: self._why_held() for request_id in known if request_id in held}
        inside = [request_id for request_id in known if request_id not in here]
        return here | await self._ask(inside) if inside else here

    def judged(self, service: str, attained: bool) -> None:
        """See `serving.Backend`; an engine that is not there has nothing to learn."""
        if self._send is not None and self._ready is not None:
            self._send(Judged(service, attained))

    # ---- the supervisor's side ----------------------------------------------------------------

    def attach(self, send: Send) -> None:
        """A process was started; `send` reaches it."""
        self._send = send
        self._lives += 1
        self._progress = "the engine is starting"

    def receive(self, message: FromEngine) -> None:
        """Take in one message of the attached engine."""
        match message:
            case Outputs():
                for event in message.events:
                    self._deliver(event)
                self._send_held()
            case Stats():
                self._stats = message
                self._send_held()
            case Refused():
                self._refuse(message)
            case Explained():
                question = self._questions.get(message.number)
                if question is not None and not question.done():
                    question.set_result(message.reasons)
            case Loading():
                self._progress = f"{message.stage}: {message.fraction:.0%}"
            case Ready():
                self._was_ready = True
                self._ready = message
                self._progress = f"ready: {message.emulated}" if message.emulated else "ready"
                self._send_held()
            case Failed():
                self._progress = message.message

    def detach(self, reason: str) -> None:
        """The process is gone: LS requests end, BE requests wait for the next one."""
        self._send = self._ready = self._stats = None
        self._progress = reason
        for question in self._questions.values():
            if not question.done():
                question.set_exception(EngineUnavailableError(f"engine {self.name}: {reason}"))
        waiting = set(map(id, self._held))
        for request in list(self._requests.values()):
            if id(request) not in waiting:
                self._survive(request, reason)
        self._unstarted.clear()
        kept = [request for request in self._requests.values() if request.best_effort]
        self._held = deque(kept)

    def give_up(self, reason: str) -> None:
        """No further process will come: every request ends, and so does every later one."""
        self.detach(reason)
        self._given_up = True
        for request in list(self._requests.values()):
            self._end(request, EngineUnavailableError(reason))

    # ---- requests -----------------------------------------------------------------------------

    def _admit(self, submit: Submit) -> Request:
        request = Request(_salted(submit))
        if submit.request_id in self._requests:
            raise RequestRefusedError(
                "bad_request", f"request_id {submit.request_id!r} is in use; choose another"
            )
        if self._given_up or (self._ready is None and not request.best_effort):
            raise EngineUnavailableError(f"engine {self.name}: {self._progress}")
        if self._ready is not None and not (request.best_effort and self._held):
            self._dispatch(request)
        else:
            self._hold(request)
        self._requests[submit.request_id] = request
        return request

    def _hold(self, request: Request) -> None:
        if len(self._held) >= self._max_waiting:
            raise RequestRefusedError(
                "queue_full",
                f"engine {self.name}: {len(self._held)} best-effort requests wait for it "
                f"({self._progress}), the limit is {self._max_waiting}; try again later",
                retry_after_s=5.0,
            )
        request.kept = True
        self._held.append(request)

    def _why_held(self) -> str:
        if self._ready is None:
            return f"it waits in the agent until the engine takes requests: {self._progress}"
        return (
            f"it waits in the agent with {len(self._held)} BE requests: the engine's queue is full"
        )

    async def _ask(self, request_ids: list[str]) -> dict[str, str]:
        """The engine's answer, within ANSWER_S."""
        if self._send is None or self._ready is None:
            raise EngineUnavailableError(f"engine {self.name}: {self._progress}")
        if len(self._questions) >= MOST_QUESTIONS:
            raise RequestRefusedError(
                "queue_full", f"engine {self.name}: {MOST_QUESTIONS} ask already; try again later"
            )
        self._asked += 1
        number, answer = self._asked, asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            self._send(Explain(number, request_ids))
            return await asyncio.wait_for(answer, ANSWER_S)
        finally:
            del self._questions[number]

    def _dispatch(self, request: Request) -> None:
        if self._send is None:
            raise EngineUnavailableError(f"engine {self.name}: {self._progress}")
        self._send(request.message())
        if request.best_effort:
            self._unstarted.add(request.submit.request_id)

    def _send_held(self) -> None:
        """Send what waits, but never more unstarted requests than the engine's queue holds."""
        while self._ready is not None and self._held and len(self._unstarted) < self._max_waiting:
            try:
                self._dispatch(self._held[0])
            except RequestRefusedError:
                return  # the link is full; the next message tries again
            self._held.popleft()

    def _deliver(self, event: TokenEvent) -> None:
        request = self._requests.get(event.request_id)
        if request is None:
            return  # cancelled meanwhile
        self._unstarted.discard(event.request_id)
        request.deliver(event)
        if event.finish_reason is not None:
            del self._requests[event.request_id]

    def _refuse(self, refusal: Refused) -> None:
        request = self._requests.get(refusal.request_id)
        self._unstarted.discard(refusal.request_id)
        if request is None:
            return
        if refusal.reason == "queue_full" and request.kept:
            self._held.appendleft(request)  # retried with the engine's next figures
            return
        error = RequestRefusedError(refusal.reason, refusal.message, refusal.retry_after_s)
        self._end(request, error)

    def _survive(self, request: Request, reason: str) -> None:
        """Count a replay of a request whose engine died, or end the request."""
        if not request.best_effort:
            self._end(request, EngineUnavailableError(f"engine {self.name}: {reason}"))
        elif request.complete:
            self._deliver(TokenEvent(request_id=request.submit.request_id, finish_reason="length"))
        elif request.replays >= self._max_replays:
            text = f"{reason}; the request was replayed {request.replays} times, which is the limit"
            self._end(request, EngineUnavailableError(f"engine {self.name}: {text}"))
        else:
            request.replays += 1
            request.kept = True

    def _end(self, request: Request, error: Exception) -> None:
        self._requests.pop(request.submit.request_id, None)
        request.mailbox.fail(error)

    def _forget(self, request: Request) -> None:
        """The reader left: if the request has not ended, cancel it wherever it is."""
        request_id = request.submit.request_id
        if self._requests.get(request_id) is not request:
            return
        del self._requests[request_id]
        self._unstarted.discard(request_id)
        if request in self._held:
            self._held.remove(request)
        elif self._send is not None:
            self._send(Cancel(request_id))


def _salted(submit: Submit) -> Submit:
    if submit.cache_salt:
        return submit
    namespace = submit.service.partition("/")[0]
    return msgspec.structs.replace(submit, cache_salt=cache_salt(namespace))

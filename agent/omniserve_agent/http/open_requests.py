"""The requests that run, by the `x-request-id` under which their answers go out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from omniserve_agent.engine.messages import Submit
from omniserve_agent.serving import ServedService


@dataclass(frozen=True, eq=False)
class OpenRequest:
    """One HTTP request in its engine: a submit for each choice."""

    service: ServedService
    submits: Sequence[Submit]


@dataclass
class OpenRequests:
    """As many as are in flight. Callers choose ids, so that several requests may have one."""

    _by_id: dict[str, list[OpenRequest]] = field(default_factory=dict)

    @contextmanager
    def added(self, request_id: str, request: OpenRequest) -> Iterator[None]:
        """There while the block runs."""
        same = self._by_id.setdefault(request_id, [])
        same.append(request)
        try:
            yield
        finally:
            same.remove(request)
            if not same:
                del self._by_id[request_id]

    def of(self, request_id: str) -> list[OpenRequest]:
        """Those of this id, none where it is not known."""
        return list(self._by_id.get(request_id, ()))

"""Which services this server routes to. They may be replaced while requests run."""

from __future__ import annotations

from collections.abc import Sequence

from omniserve_agent.serving import Backend, ServedService


class ServiceRegistry:
    """Requests that have begun keep the service they began with.

    `routes` False: for figures and readiness only, where every service has a port of its own, so
    that served names need not differ.
    """

    def __init__(self, services: Sequence[ServedService] = (), *, routes: bool = True) -> None:
        self._routes = routes
        self._services: list[ServedService] = []
        self._by_served_name: dict[str, ServedService] = {}
        self._engines: list[tuple[str, Backend]] = []
        self._engine_count = 0
        self.replace(services)

    def replace(self, services: Sequence[ServedService]) -> None:
        """Route to exactly these from now on; ValueError on a name used twice."""
        by_name: dict[str, ServedService] = {}
        for service in services if self._routes else ():
            if service.served_name in by_name:
                raise ValueError(
                    f"served name {service.served_name!r} is used by "
                    f"{by_name[service.served_name].key} and {service.key}; give one another"
                )
            by_name[service.served_name] = service
        self._services = list(services)
        self._by_served_name = by_name
        self._name_engines([service.backend for service in services])

    @property
    def services(self) -> list[ServedService]:
        """In the order given."""
        return list(self._services)

    @property
    def engines(self) -> list[tuple[str, Backend]]:
        """(name, engine), each once. A name stays with its engine and is not given again."""
        return list(self._engines)

    def served_as(self, name: str) -> ServedService | None:
        """The service behind an OpenAI `model` value."""
        return self._by_served_name.get(name)

    def with_key(self, key: str) -> ServedService | None:
        """The service `namespace/name`."""
        return next((s for s in self._services if s.key == key), None)

    def engine_name(self, backend: Backend) -> str:
        """The name of an engine in use, else an empty text."""
        return next((name for name, known in self._engines if known is backend), "")

    def _name_engines(self, backends: Sequence[Backend]) -> None:
        engines: list[tuple[str, Backend]] = []
        for backend in backends:
            if any(known is backend for _, known in engines):
                continue
            name = self.engine_name(backend)
            if not name:
                name = f"engine-{self._engine_count}"
                self._engine_count += 1
            engines.append((name, backend))
        self._engines = engines

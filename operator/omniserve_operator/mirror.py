"""Referenced Secrets, copied into the release namespace for the agents.

The operator may get Secrets, not list them; it reads those that an LLMService names, and keeps the
names of its copies in a ConfigMap, so that copies nobody needs any more are found after a restart.
The ConfigMap is the chart's and owns the copies and the Lease: they go with `helm uninstall`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from omniserve_crds.conditions import Reason
from omniserve_operator.api import CONFIG_MAPS, LEASES, SECRETS, Api, ApiError, Object
from omniserve_operator.endpoints import LABELS
from omniserve_operator.engines import credentials_mirror, keys_mirror
from omniserve_operator.settings import SECRETS_EVERY_S, Settings
from omniserve_operator.store import Store
from omniserve_operator.world import Service, Verdict, World
from omniserve_operator.writer import Writer, all_of

INDEX = "omniserve-mirrored-secrets"


@dataclass(frozen=True)
class Reference:
    """A Secret that services name, and the name of its copy."""

    namespace: str
    name: str
    field: str  # where it is named
    copy: str


def references(service: Service) -> list[Reference]:
    """The Secrets that one service names."""
    if service.spec is None:
        return []
    found = []
    if (auth := service.spec.auth) is not None:
        name = auth.api_keys_secret_ref.name
        field = "spec.auth.apiKeysSecretRef"
        found.append(Reference(service.namespace, name, field, keys_mirror(service.uid)))
    if (credentials := service.spec.model.credentials_secret_ref) is not None:
        copy = credentials_mirror(service.namespace, credentials.name)
        field = "spec.model.credentialsSecretRef"
        found.append(Reference(service.namespace, credentials.name, field, copy))
    return found


class Mirror:
    """Copies that follow their sources within 30 s."""

    def __init__(self, settings: Settings, api: Api, writer: Writer, store: Store) -> None:
        self._namespace = settings.namespace
        self._lease_name = settings.lease_name
        self._api = api
        self._writer = writer
        self._store = store
        self._checked_s: dict[Reference, float] = {}
        self._written: dict[str, str] = {}  # digest of what a copy holds
        self._missing: dict[str, str] = {}  # by copy: why there is none
        self._index: dict[str, str] | None = None
        self._owners: list[Object] = []

    async def carry_out(self, world: World, now_s: float) -> int:
        """Look at what is due, copy what has changed; the number of failures."""
        wanted = {r.copy: r for s in world.services for r in references(s)}
        due = [r for r in wanted.values() if self._due(r, now_s)]
        failures = await all_of([self._indexed(set(wanted))] if due else [])
        failures += await all_of(self._follow(r, now_s) for r in due)
        self._note(world)
        return failures

    def forget(self) -> None:
        """Look at everything anew: somebody else may have written meanwhile."""
        self._written.clear()
        self._checked_s.clear()
        self._index = None

    async def clean_up(self, in_use: set[str]) -> int:
        """Copies that no service and no node's spec names any more."""
        index = await self._read_index()
        gone = sorted(set(index) - in_use)
        if not gone:
            return 0
        failures = await all_of(self._remove(copy) for copy in gone)
        if not failures:
            await self._write_index(dict.fromkeys(gone))
        return failures

    def _due(self, reference: Reference, now_s: float) -> bool:
        last = self._checked_s.get(reference)
        return last is None or now_s - last >= SECRETS_EVERY_S

    async def _follow(self, reference: Reference, now_s: float) -> None:
        try:
            source = await self._api.get(SECRETS.path(reference.namespace, reference.name))
            values: dict[str, str] = source.get("data") or {}
        except ApiError as error:
            if not error.not_found:
                raise
            values = {}
            self._missing[reference.copy] = "there is no such Secret"
        else:
            self._missing.pop(reference.copy, None)
            if not values:
                self._missing[reference.copy] = "the Secret is empty"
        if values:
            await self._copy(reference, values)
        self._checked_s[reference] = now_s

    async def _copy(self, reference: Reference, values: dict[str, str]) -> None:
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        if self._written.get(reference.copy) == digest:
            return
        try:
            current = await self._api.get(SECRETS.path(self._namespace, reference.copy))
        except ApiError as error:
            if not error.not_found:
                raise
            await self._writer.create(SECRETS, self._namespace, self._manifest(reference, values))
        else:
            if (current.get("data") or {}) != values:
                gone = dict.fromkeys(current.get("data") or {})
                body = {"data": gone | values}
                await self._writer.patch(SECRETS, self._namespace, reference.copy, body)
        self._written[reference.copy] = digest

    def _manifest(self, reference: Reference, values: dict[str, str]) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": reference.copy,
                "namespace": self._namespace,
                "labels": LABELS,
                "ownerReferences": self._owners,
                "annotations": {
                    "omniserve.io/copied-from": f"{reference.namespace}/{reference.name}"
                },
            },
            "type": "Opaque",
            "data": values,
        }

    async def _remove(self, copy: str) -> None:
        try:
            found = await self._api.get(SECRETS.path(self._namespace, copy))
        except ApiError as error:
            if not error.not_found:
                raise
            return
        await self._writer.delete(SECRETS, self._namespace, copy, found["metadata"]["uid"])
        self._written.pop(copy, None)
        self._checked_s = {r: at for r, at in self._checked_s.items() if r.copy != copy}

    async def _indexed(self, copies: set[str]) -> None:
        """The names are written down before the copies are made."""
        index = await self._read_index()
        if new := copies - set(index):
            await self._write_index(dict.fromkeys(new, ""))

    async def _read_index(self) -> dict[str, str]:
        if self._index is None:
            found = await self._config_map()
            uid = found["metadata"]["uid"]
            owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": INDEX, "uid": uid}
            self._owners = [owner]
            await self._own_lease()
            self._index = found.get("data") or {}
        return self._index

    async def _config_map(self) -> Object:
        """The chart's, or one of our own where there is no chart."""
        try:
            return await self._api.get(CONFIG_MAPS.path(self._namespace, INDEX))
        except ApiError as error:
            if not error.not_found:
                raise
        metadata = {"name": INDEX, "namespace": self._namespace, "labels": LABELS}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
        return await self._writer.create(CONFIG_MAPS, self._namespace, body)

    async def _own_lease(self) -> None:
        place = (LEASES, self._namespace, self._lease_name)
        current = await self._writer.read(*place)
        if current["metadata"].get("ownerReferences") != self._owners:
            await self._writer.patch(*place, {"metadata": {"ownerReferences": self._owners}})

    async def _write_index(self, changes: dict[str, str | None]) -> None:
        body = {"data": changes}
        written = await self._writer.patch(CONFIG_MAPS, self._namespace, INDEX, body)
        self._index = written.get("data") or {}

    def _note(self, world: World) -> None:
        """Services whose Secret is missing are not accepted; the others of them are again."""
        for service in world.services:
            faults = [
                f"{r.field}: is {r.name!r}: {self._missing[r.copy]}; create it in namespace "
                f"{r.namespace}"
                for r in references(service)
                if r.copy in self._missing
            ]
            before = self._store.faults.get(service.uid)
            if faults:
                fault = Verdict(Reason.SECRET_MISSING, "; ".join(faults))
                self._store.faults[service.uid] = fault
            elif before is not None and before.reason is Reason.SECRET_MISSING:
                del self._store.faults[service.uid]

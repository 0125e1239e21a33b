"""Leadership through a Lease: only its holder writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp
import structlog
from kubernetes.aio.client import ApiClient, V1Lease, V1ObjectMeta
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from omniserve_operator.api import LEASES, Api, ApiError

DURATION_S = 15
RENEW_WITHIN_S = 10
RETRY_S = 2
CALL_S = 4.0

log = structlog.get_logger(__name__)


class Leadership:
    """Holds the Lease from an accepted renewal until `RENEW_WITHIN_S` after that call began.

    Others wait `DURATION_S` after a renewal that they saw, so two never write at once.
    """

    def __init__(self, on_contact: Callable[[float], None], on_change: Callable[[], None]) -> None:
        self._on_contact = on_contact
        self._on_change = on_change
        self._until_s = 0.0

    def held(self) -> bool:
        return time.monotonic() < self._until_s

    def renewed(self, called_s: float) -> None:
        before = self.held()
        self._on_contact(time.monotonic())
        self._until_s = called_s + RENEW_WITHIN_S
        if not before:
            log.info("lease_held")
            self._on_change()

    def lost(self) -> None:
        self._until_s = 0.0


class _Lock(LeaseLock):
    """The library's lock with a limit on each call; a server that is away is a failed try.

    Only a write that was accepted is contact: while nothing can be written agents cannot report
    either, however well the server answers.
    """

    def __init__(
        self, name: str, namespace: str, identity: str, client: ApiClient, leadership: Leadership
    ) -> None:
        super().__init__(name, namespace, identity, client)
        self._leadership = leadership

    async def get(
        self, name: str, namespace: str
    ) -> tuple[bool, LeaderElectionRecord] | tuple[bool, Exception] | tuple[bool, None]:
        try:
            async with asyncio.timeout(CALL_S):
                return await super().get(name, namespace)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return False, ApiException(status=0, reason=str(error) or type(error).__name__)

    async def create(
        self, name: str, namespace: str, election_record: LeaderElectionRecord
    ) -> bool:
        """The library's own (37.0) sends `pretty=True`, which its client refuses as no string."""
        called_s = time.monotonic()
        lease = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            async with asyncio.timeout(CALL_S):
                await self.api_instance.create_namespaced_lease(namespace, lease)
        except (ApiException, aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("lease_not_created", error=str(error))
            return False
        return self._told(True, called_s)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        called_s = time.monotonic()
        try:
            async with asyncio.timeout(CALL_S):
                done = await super().update(name, namespace, updated_record)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        return self._told(done, called_s)

    def _told(self, done: bool, called_s: float) -> bool:
        if done:
            self._leadership.renewed(called_s)
        return done


async def keep_lease(
    leadership: Leadership, client: ApiClient, namespace: str, name: str, identity: str
) -> None:
    """Acquire, renew, and acquire again after a loss; until cancelled."""
    while True:
        lock = _Lock(name, namespace, identity, client, leadership)
        election = LeaderElection(
            Config(
                lock,
                lease_duration=DURATION_S,
                renew_deadline=RENEW_WITHIN_S,
                retry_period=RETRY_S,
                onstarted_leading=_nothing,
                onstopped_leading=_nothing,
            )
        )
        await election.run()
        leadership.lost()
        log.warning("lease_lost", name=name)


async def _nothing() -> None:
    """What is done while leading asks `Leadership.held` before each write."""


async def give_up(api: Api, leadership: Leadership, namespace: str, name: str) -> None:
    """On a clean end: the next one need not wait until the Lease runs out."""
    if not leadership.held():
        return
    leadership.lost()
    try:
        await api.patch(LEASES.path(namespace, name), {"spec": {"holderIdentity": None}})
    except ApiError as error:
        log.warning("lease_not_given_up", error=str(error))

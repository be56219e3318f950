"""Leader election: of several operators, one drives the jobs and the others wait.

The leader keeps renewing a Lease. A candidate takes it over when it has seen it unchanged for the Lease's whole
duration on its own monotonic clock: what time the holder wrote into it is for people, because clocks differ and jump.
Time in which a candidate could not look does not count, so that after an outage of the API server the leader has a
whole duration to renew, and an outage alone changes no leader.
All writes carry the resource version that was read, so of two candidates one loses. A clean stop empties the holder,
and the next candidate needs not wait.

An API server that cannot be reached takes nobody's leadership away by itself. Jobs go on meanwhile, because they need
only devices and disk. Whoever shares our outage cannot be elected either; whoever does not is elected, and takes over
the commit logs, whose epochs stop our writers (see `storage.commitlog`). As soon as the API server answers that
somebody else leads, `hold` raises.

`kubernetes.aio.leaderelection` was not used: it reads the wall clock, fetches twice where once will do, cannot
release, and gives up leading after an outage.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from pocketgrid.clock import Clock
from pocketgrid.controller.client import LEASES, Cluster, ConflictError, Json, NotFoundError
from pocketgrid.errors import PeerError, PocketGridError

log = logging.getLogger(__name__)

LEASE_NAME = "pocketgrid-operator"

TRY_S = 2.0
"""How long one try may take. Shorter than calls may in general: one that hangs must not use up the Lease."""


class LeadershipLostError(PocketGridError):
    """Another operator leads; this process must stop working at once."""


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """How soon a leader that died is replaced: within `lease_seconds` + `poll_seconds` and a call.

    Attributes:
        lease_seconds: the Lease's duration, whole seconds. Three renewals may fail in between.
        renew_seconds: how often the leader renews.
        poll_seconds: how often a candidate looks, and a leader whose renewal failed tries again.
    """

    lease_seconds: int = 7
    renew_seconds: float = 2.0
    poll_seconds: float = 0.5

    @classmethod
    def lasting(cls, lease_seconds: int) -> LeaseTiming:
        """The same proportions for another duration, whole seconds >= 2."""
        usual = cls()
        return cls(lease_seconds, renew_seconds=usual.renew_seconds * lease_seconds / usual.lease_seconds)


class Election:
    """This process's part in the election.

    Args:
        namespace: where the Lease is; must exist.
        identity: of this process, different from all others that ever ran.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, identity: str, clock: Clock, timing: LeaseTiming | None = None
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._identity = identity
        self._clock = clock
        self._timing = timing or LeaseTiming()
        self._held: Json | None = None
        self._renewed_at = 0.0
        self._seen_version = ""
        self._seen_at = 0.0
        self._looked_at = 0.0
        self._seen_holder = ""

    @property
    def certain(self) -> bool:
        """Whether nobody else can lead at this moment."""
        return self._held is not None and self._clock.monotonic() < self._renewed_at + self._timing.lease_seconds

    async def acquire(self) -> None:
        """Return once this process leads, however long it takes."""
        complaint = ""
        while True:
            try:
                async with asyncio.timeout(TRY_S):
                    leads = await self._try_to_lead()
                if leads:
                    log.info("leading identity=%s", self._identity)
                    return
            except (PeerError, TimeoutError) as exc:
                cause = str(exc) or "no answer in time"
                if cause != complaint:
                    complaint = cause
                    log.warning("cannot look for the leader cause=%s", cause)
            await asyncio.sleep(self._timing.poll_seconds)

    async def hold(self) -> None:
        """Keep leading until cancelled.

        Raises:
            LeadershipLostError: somebody else leads.
        """
        trouble = False
        while True:
            await asyncio.sleep(self._timing.poll_seconds if trouble else self._timing.renew_seconds)
            try:
                async with asyncio.timeout(TRY_S):
                    await self._renew()
            except (PeerError, TimeoutError) as exc:
                if not trouble:
                    log.warning("cannot renew the lead, jobs go on cause=%s", str(exc) or "no answer in time")
                trouble = True
            else:
                trouble = False

    async def release(self) -> None:
        """Let the next one lead at once. Does nothing if this process does not lead."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            try:
                await self._vacate(held)
            except ConflictError:
                # A renewal that was cancelled on its way may have gone through all the same.
                current = await self._cluster.get(LEASES, LEASE_NAME, self._namespace)
                if current["spec"].get("holderIdentity") == self._identity:
                    await self._vacate(current)
            log.info("released the lead identity=%s", self._identity)
        except PeerError as exc:
            log.warning("cannot release the lead, the next one has to wait for its end cause=%s", exc)

    async def _vacate(self, lease: Json) -> None:
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._now()}
        await self._cluster.replace(LEASES, {**lease, "spec": spec}, self._namespace)

    async def _try_to_lead(self) -> bool:
        began = self._clock.monotonic()
        try:
            lease = await self._cluster.get(LEASES, LEASE_NAME, self._namespace)
        except NotFoundError:
            return await self._create(began)
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder == self._identity:
            # An earlier write of ours went through although its answer was lost.
            self._remember(lease, began)
            return True
        if holder and not self._expired(lease, spec):
            return False
        transitions = int(spec.get("leaseTransitions") or 0) + 1
        taken = {**lease, "spec": {**self._spec(), "acquireTime": self._now(), "leaseTransitions": transitions}}
        try:
            self._remember(await self._cluster.replace(LEASES, taken, self._namespace), began)
        except ConflictError:
            return False
        return True

    def _expired(self, lease: Json, spec: Json) -> bool:
        now, version = self._clock.monotonic(), lease["metadata"]["resourceVersion"]
        duration = float(spec.get("leaseDurationSeconds") or self._timing.lease_seconds)
        blind, self._looked_at = now - self._looked_at > max(duration / 2, TRY_S), now
        if version != self._seen_version or blind:
            self._seen_version, self._seen_at = version, now
        if spec["holderIdentity"] != self._seen_holder:
            self._seen_holder = spec["holderIdentity"]
            log.info("waiting, another operator leads identity=%s leader=%s", self._identity, self._seen_holder)
        return now - self._seen_at >= duration

    async def _create(self, began: float) -> bool:
        manifest: Json = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE_NAME, "namespace": self._namespace},
            "spec": {**self._spec(), "acquireTime": self._now(), "leaseTransitions": 0},
        }
        try:
            self._remember(await self._cluster.create(LEASES, manifest, self._namespace), began)
        except ConflictError:
            return False
        return True

    async def _renew(self) -> None:
        assert self._held is not None
        began = self._clock.monotonic()
        renewed = {**self._held, "spec": {**self._held["spec"], **self._spec()}}
        try:
            self._remember(await self._cluster.replace(LEASES, renewed, self._namespace), began)
        except (ConflictError, NotFoundError):
            # Somebody else wrote it or deleted it: a candidate, or an administrator who added a label.
            if not await self._still_ours(began):
                self._held = None
                raise LeadershipLostError(f"another operator has taken {LEASE_NAME} from {self._identity}") from None

    async def _still_ours(self, began: float) -> bool:
        try:
            lease = await self._cluster.get(LEASES, LEASE_NAME, self._namespace)
        except NotFoundError:
            return await self._create(began)
        if (lease.get("spec") or {}).get("holderIdentity") != self._identity:
            return False
        self._remember(lease, self._renewed_at)
        return True

    def _remember(self, lease: Json, began: float) -> None:
        # From before the call: others count from when they see its effect, which is later.
        self._held, self._renewed_at = lease, began

    def _spec(self) -> Json:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._timing.lease_seconds,
            "renewTime": self._now(),
        }

    def _now(self) -> str:
        return micro_time(self._clock.wall())


def micro_time(wall: float) -> str:
    """Seconds since the Unix epoch as Kubernetes' MicroTime."""
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

"""The driver: what happens becomes an event for the machine, and the effects it answers with are carried out here.

It decides nothing by itself. Everything of it runs on one event loop, except what the slots, the journal's thread and
the model threads do; they report back to the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, assert_never

from pocketgrid.errors import ProtocolError, StoreError
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import __version__, codec, policy, status
from pocketgrid_agent import events as ev
from pocketgrid_agent.backoff import Backoff
from pocketgrid_agent.cache import ModelCache
from pocketgrid_agent.engine_facts import EngineFacts, known_facts
from pocketgrid_agent.events import Token
from pocketgrid_agent.history import History, Recorder
from pocketgrid_agent.hours import LocalTime
from pocketgrid_agent.identity import State
from pocketgrid_agent.journal import Entry, Journal
from pocketgrid_agent.keeper import ResultKeeper
from pocketgrid_agent.link import Link
from pocketgrid_agent.machine import Held, Limits, Machine
from pocketgrid_agent.pacing import DeliveryPacer
from pocketgrid_agent.settings import Settings
from pocketgrid_agent.stream import Target
from pocketgrid_agent.tools import ANSWER_SECONDS, all_sensors
from pocketgrid_agent.vitals import Vitals

if TYPE_CHECKING:
    from pocketgrid_agent.workshop import Workshop

log = logging.getLogger(__name__)

VITALS_SECONDS = 5.0
"""Between readings of the vitals; heartbeats may be more frequent."""

EASED_DUTY = 0.5
"""Share of its usual time a device computes that is to work gently."""

MOST_REFUSALS_LOGGED = 5
"""Of one message; they are mostly alike."""

CLOSE_SECONDS = 2.0
"""For the last messages when leaving."""

SLOT_SECONDS = 0.5
"""For the slots to notice that nobody wants what they compute; a run of the engine cannot be interrupted."""


class Agent:
    """One agent process, from its first dial to its end.

    Args:
        settings: what the owner said.
        state: who this device is; stays the caller's to close.
        target: whom to dial.
        backoff: how long to wait between dials.
        recorder: keeps a history of every attempt, if one is wanted.

    Raises:
        StoreError: journal or cache cannot be used.
    """

    def __init__(
        self, settings: Settings, state: State, target: Target, backoff: Backoff, *, recorder: Recorder | None = None
    ) -> None:
        self._history = History(recorder, state.name) if recorder is not None else None
        self._settings = settings
        self._state = state
        self._target = target
        self._machine = Machine(
            Limits(
                slots=settings.slots,
                credit_shards=settings.credit_shards,
                credit_bytes=settings.credit_bytes,
                held_bytes=settings.journal_bytes,
            )
        )
        self._cache = ModelCache(settings.cache_dir, budget_bytes=settings.cache_bytes)
        journal = Journal(state.journal_path)
        if journal.moved_aside is not None:
            log.warning("the journal was unreadable and is now at %s; its results are lost", journal.moved_aside)
        if journal.damaged:
            log.warning("the journal had %d damaged results, which are dropped", journal.damaged)
        self._machine.restore(
            Held(s.job, s.shard, s.token, result_bytes=s.body_bytes, failed=s.failed) for s in journal.summaries()
        )
        self._pacer = DeliveryPacer()
        self._outgoing: dict[str, list[Token]] = {}
        self._delivery: asyncio.TimerHandle | None = None
        self._keeper = ResultKeeper(journal, lambda tokens: self._handle(ev.Journaled(tokens)))
        self._link = Link(target, self, backoff)
        self._sensors = all_sensors(gateway_is_local=target.is_local)
        self._vitals = Vitals()
        self._workshop: Workshop | None = None
        self._opening: asyncio.Task[Workshop] | None = None
        self._engine: asyncio.Task[EngineFacts] | None = None
        self._judged = policy.START
        self._preparations: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished = asyncio.Event()
        self._ended = False

    async def run(self) -> None:
        """Work until drained.

        Raises:
            RefusedError: the gateway will not have this device.
        """
        self._loop = asyncio.get_running_loop()
        self._engine = asyncio.ensure_future(self._engine_facts())
        link = asyncio.ensure_future(self._link.run())
        vitals = asyncio.ensure_future(self._watch_vitals())
        finished = asyncio.ensure_future(self._finished.wait())
        try:
            async with status.answering(self._state.folder, self.report):
                await asyncio.wait([link, vitals, finished], return_when=asyncio.FIRST_COMPLETED)
            for each in (link, vitals):
                if each.done():
                    each.result()
            await self._link.close(CLOSE_SECONDS)
        finally:
            tasks: list[asyncio.Future[Any]] = [link, vitals, finished, self._engine]
            tasks += [*self._preparations.values(), *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._ended = True
            if self._workshop is not None:
                # Nobody waits for what the slots are at: a gateway may send a device away in the middle of it.
                self._workshop.pool.abandon(tuple(self._machine.running))
                await asyncio.to_thread(self._workshop.pool.stop, SLOT_SECONDS)
            await self._keeper.close()
            if self._workshop is not None:
                self._workshop.close()

    def drain(self, reason: str) -> None:
        """Finish what is begun, give back the rest, deliver, then let `run` end; at the latest after the deadline."""
        log.info("draining reason=%s deadline_s=%.0f", reason, self._settings.drain_s)
        self._loop.call_later(self._settings.drain_s, self._out_of_time)
        self._handle(ev.DrainRequested(reason, leave=True))

    def report(self) -> dict[str, Any]:
        """What this agent is doing, in JSON's terms."""
        machine, verdict = self._machine, self._machine.verdict
        return {
            "device": self._state.name,
            "version": __version__,
            "gateway": self._target.address,
            "attached": machine.attached,
            "level": verdict.level.name,
            "reason": verdict.reason,
            "message": verdict.message,
            "draining": machine.draining.reason if machine.draining is not None else "",
            "running": len(machine.running),
            "queued": len(machine.queue),
            "unsettled": len(machine.held),
            "jobs": [{"job": name, "state": _state_of(job.outcome)} for name, job in machine.jobs.items()],
            "engine_loaded": self._workshop is not None,
            "vitals": asdict(self._vitals),
        }

    def _out_of_time(self) -> None:
        if not self._finished.is_set():
            log.warning(
                "drain deadline over running=%d unsettled=%d; results stay in the journal",
                len(self._machine.running),
                len(self._machine.held),
            )
            self._finished.set()

    # ---- the engine ----

    async def _engine_facts(self) -> EngineFacts:
        if self._settings.preload:
            try:
                return (await self._open_workshop()).facts
            except ImportError as error:
                log.error("the engine cannot be loaded cause=%s", error)
        return await asyncio.to_thread(known_facts, self._state.folder)

    async def _open_workshop(self) -> Workshop:
        """What computes. Made once; in a thread, because importing an engine takes its time."""
        if self._workshop is not None:
            return self._workshop
        if self._opening is None:
            self._opening = asyncio.ensure_future(asyncio.to_thread(self._make_workshop))
        try:
            self._workshop = await asyncio.shield(self._opening)
        finally:
            if self._opening is not None and self._opening.done():
                self._opening = None
        self._set_pace()
        return self._workshop

    def _set_pace(self) -> None:
        """Have the slots rest between micro-batches as the owner and the policy want."""
        if self._workshop is not None:
            eased = self._judged.verdict.level is policy.Level.EASE
            self._workshop.pool.duty = self._settings.duty * (EASED_DUTY if eased else 1.0)

    def _make_workshop(self) -> Workshop:
        from pocketgrid_agent.workshop import Workshop

        return Workshop(self._settings, self._cache, self._link, self._wake_up)

    # ---- what the link asks and says ----

    async def hello(self) -> pb.Hello:
        """Who we are and what we still hold."""
        assert self._engine is not None
        engine = await asyncio.shield(self._engine)
        settings, facts = self._settings, self._settings.facts
        return pb.Hello(
            protocol_version=framing.PROTOCOL_VERSION,
            oldest_protocol_version=framing.OLDEST_PROTOCOL_VERSION,
            device_name=self._state.name,
            boot_id=self._state.boot_id,
            node_name=settings.node_name,
            facts=pb.DeviceFacts(
                kind=facts.kind,
                arch=facts.arch,
                os=facts.os,
                cores=facts.cores,
                memory_bytes=facts.memory_bytes,
                simd=facts.simd,
                providers=engine.providers,
                model_name=facts.model_name,
                agent_version=__version__,
                engine=_engine_text(engine.description, settings.graph_optimization),
                opset=engine.opset,
            ),
            slots=settings.slots,
            credits=pb.Credits(shards=settings.credit_shards, bytes=settings.credit_bytes),
            cached_models=self._cache.digests(),
            held=[
                pb.HeldAttempt(job=h.job, shard=h.shard, token=h.token, finished=h.finished)
                for h in self._machine.announce()
            ],
            labels=settings.labels,
            features=codec.FEATURES,
        )

    async def heartbeat(self, sequence: int) -> pb.Heartbeat:
        """How we feel."""
        vitals, machine = self._vitals, self._machine
        heartbeat = pb.Heartbeat(
            sequence=sequence,
            load1=vitals.load1,
            memory_available_bytes=vitals.memory_available_bytes,
            battery_percent=vitals.battery_percent,
            temperature_celsius=vitals.temperature_celsius,
            network=vitals.network,
            queued_shards=len(machine.queue),
            running_shards=len(machine.running),
            unacknowledged_results=len(machine.held),
        )
        if vitals.charging is not None:
            heartbeat.charging = vitals.charging
        return heartbeat

    def results(self, job: str, tokens: Sequence[Token]) -> AsyncIterator[pb.Results]:
        """Messages with these results."""
        return self._keeper.results(job, [token for token in tokens if token in self._machine.held])

    def welcomed(self, welcome: pb.Welcome) -> None:
        """The stream is open."""
        log.info(
            "attached gateway=%s session=%s name=%s unsettled=%d",
            self._target.address,
            welcome.session_id,
            self._state.name,
            len(self._machine.held),
        )
        self._handle(ev.Welcomed())

    def received(self, message: pb.GatewayMessage) -> None:
        """A message of the gateway."""
        refusals = message.settled.refused if message.HasField("settled") else ()
        for refused in refusals[:MOST_REFUSALS_LOGGED]:
            log.warning(
                "result refused job=%s reason=%s message=%s of=%d",
                message.settled.job,
                refused.reason,
                refused.message,
                len(refusals),
            )
        try:
            event = codec.event_of(message)
        except ProtocolError as error:
            if not message.HasField("work_order"):
                raise
            # One job we cannot serve is no reason to leave the others.
            order = message.work_order
            self._report(order.job[: codec.LONGEST_JOB], order.model_sha256[:64], str(error)[:1000])
            return
        if event is not None:
            self._handle(event)

    def lost(self, reason: str) -> None:
        """The stream is gone; work goes on."""
        log.info("detached cause=%s", reason)
        self._handle(ev.LinkLost())

    def _report(self, job: str, digest: str, message: str) -> None:
        report = pb.ModelReport(
            job=job,
            model_sha256=digest,
            state=pb.ModelReport.STATE_FAILED,
            reason="UnsupportedWorkOrder",
            message=message,
        )
        self._link.send(pb.DeviceMessage(model_report=report))

    async def _watch_vitals(self) -> None:
        """Read how we feel and ask the policy, also while detached."""
        if self._sensors.take_time:
            self._handle(ev.PolicyChanged(policy.LOOKING_AROUND))
            await asyncio.to_thread(self._sensors.settle, ANSWER_SECONDS)
        while True:
            calm = not self._machine.running and not self._machine.queue
            self._vitals = await asyncio.to_thread(self._sensors.read, calm=calm)
            before, now = self._machine.verdict, datetime.now().astimezone()
            local = LocalTime(now.weekday(), now.hour * 60 + now.minute)
            self._judged = policy.judge(self._settings.policy, self._vitals, time.monotonic(), local, self._judged)
            verdict = self._judged.verdict
            if (before.level, before.reason) != (verdict.level, verdict.reason):
                log.info("policy level=%s reason=%s message=%s", verdict.level.name, verdict.reason, verdict.message)
                self._handle(ev.PolicyChanged(verdict))
                self._set_pace()
            await asyncio.sleep(VITALS_SECONDS)

    # ---- what the slots say ----

    def _wake_up(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and this slot was left behind
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        assert self._workshop is not None
        for done in self._workshop.pool.collect():
            attempt = done.attempt
            if done.body is None:
                self._handle(ev.Abandoned(attempt.token))
                continue
            wanted = Entry(attempt.job, attempt.shard, attempt.token, done.failed, done.body)
            self._handle(ev.Finished(attempt.token, len(done.body), done.failed), wanted)

    # ---- carrying out ----

    def _handle(self, event: ev.Event, finished: Entry | None = None) -> None:
        """Feed the machine; `finished` is the result a Finished event is about."""
        if self._ended:
            return  # whatever it decided, nobody is left to carry it out
        if log.isEnabledFor(logging.DEBUG):
            log.debug("event %s", event)
        if self._history is not None:
            self._history.happened(event)
        for effect in self._machine.handle(event):
            if self._history is not None:
                self._history.decided(effect)
            self._carry_out(effect, finished)
        idle = not self._machine.running
        self._keeper.write_soon(idle=idle)
        self._deliver_soon(last=not self._machine.queue)

    def _deliver_soon(self, *, last: bool) -> None:
        if not self._outgoing:
            return
        wait = self._pacer.wait(self._loop.time(), last=last)
        if not wait:
            self._deliver()
        elif self._delivery is None:
            self._delivery = self._loop.call_later(wait, self._deliver)

    def _deliver(self) -> None:
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        outgoing, self._outgoing = self._outgoing, {}
        for job, tokens in outgoing.items():
            self._link.send_results(job, tokens)
        self._pacer.sent(self._loop.time())

    def _carry_out(self, effect: ev.Effect, finished: Entry | None) -> None:
        match effect:
            case ev.Compute(attempt, order):
                assert self._workshop is not None
                self._workshop.pool.submit(attempt, self._workshop.models.program(order.job))
            case ev.Keep():
                assert finished is not None
                self._keeper.keep(finished)
            case ev.Reissue(old, new):
                result = self._machine.held[new]
                self._keeper.reissue(result.job, result.shard, old, new)
            case ev.Deliver(job, tokens):
                self._outgoing.setdefault(job, []).extend(tokens)
                self._pacer.finished(self._loop.time())
            case ev.Forget(tokens):
                self._keeper.forget(tokens)
            case ev.Abandon(tokens):
                assert self._workshop is not None
                self._workshop.pool.abandon(tokens)
            case ev.GiveBack(job, tokens, reason):
                returned = pb.Returned(job=job, tokens=tokens, reason=reason)
                self._link.send(pb.DeviceMessage(returned=returned))
            case ev.Prepare(order):
                self._preparations[order.job] = asyncio.ensure_future(self._prepare(order))
            case ev.Dismiss(job):
                self._dismiss(job)
            case ev.Report(order, outcome):
                self._link.send(codec.report_message(order, outcome))
            case ev.Restrain(verdict):
                self._link.send(codec.restraint_message(verdict))
            case ev.Postpone(job):
                self._stop_preparing(job)
            case ev.AnnounceDraining(reason):
                self._link.send(pb.DeviceMessage(draining=pb.Draining(reason=reason)))
            case ev.Disconnect(reason):
                self._spawn(self._disconnect(reason))
            case ev.Leave():
                log.info("drained")
                self._finished.set()
            case _:
                assert_never(effect)

    async def _prepare(self, order: ev.Order) -> None:
        try:
            outcome = await (await self._open_workshop()).models.prepare(order)
        except ImportError as error:
            outcome = ev.NotReady("EngineUnavailable", f"{error}; run `pocketgrid-agent doctor` on the device")
        except StoreError as error:
            outcome = ev.NotReady("CacheFailed", str(error))
        except Exception as error:
            log.exception("preparing failed unexpectedly job=%s", order.job)
            outcome = ev.NotReady("InternalError", repr(error))
        if self._preparations.get(order.job) is asyncio.current_task():
            del self._preparations[order.job]
        if isinstance(outcome, ev.NotReady):
            log.warning("not ready job=%s reason=%s message=%s", order.job, outcome.reason, outcome.message)
        self._handle(ev.Prepared(order, outcome))

    def _stop_preparing(self, job: str) -> None:
        task = self._preparations.pop(job, None)
        if task is not None:
            task.cancel()
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _dismiss(self, job: str) -> None:
        self._stop_preparing(job)
        if self._workshop is not None:
            self._workshop.models.dismiss(job)

    async def _disconnect(self, reason: str) -> None:
        await self._link.flush(CLOSE_SECONDS)
        self._link.disconnect(reason)

    def _spawn(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _engine_text(description: str, graph_optimization: str) -> str:
    """With how far it rewrites models, where that is not as usual: the last digits of results depend on it."""
    return description if graph_optimization == "all" else f"{description} graph={graph_optimization}"


def _state_of(outcome: ev.Ready | ev.NotReady | None) -> str:
    match outcome:
        case None:
            return "getting ready"
        case ev.Ready():
            return f"ready, {outcome.items_per_second:.1f} items/s measured"
        case ev.NotReady():
            return f"{outcome.reason}: {outcome.message}"
        case _:
            assert_never(outcome)

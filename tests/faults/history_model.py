"""What a history may contain: a small sequential model of the grid that replays it, line by line.

In the manner of etcd's robustness tests: processes are killed and links cut at random while every one of them writes
down what it does; afterwards the lines of all, in order of time, are fed to this model, and the first that it cannot
follow is a violation. The model knows nothing of time-outs, speeds or which device should get what. It knows what may
never happen:

- *lease*: an attempt's number is used once, in its epoch, for a shard that is not committed, by a device that has not
  got that shard and has room for it;
- *result*: a genuine token names an attempt that was leased, for that shard, to that device;
- *commit*: only of an accepted result (or a shard given up) of the same epoch, once;
- *recovery*: a new epoch knows every shard that was ever acknowledged, and none that nobody had accepted;
- *fencing*: epochs only grow, and an old one acknowledges nothing that a newer one does not know;
- *settlement*: a device is told "committed" only of its own attempt, after the commit, or of a check it answered;
- *check*: an attempt at a virtual shard, which no number of a real one ever meets; only what is committed is verified;
- *device*: an agent begins what it was leased, finishes what it began, delivers what it finished or had in its
  journal, and hears of settlements only from an operator;
- *end*: the job is finished when, and only when, all its shards are committed.

Lines carry the file they come from (`source`); the epoch of an operator's line is that of the last `opened` in its
file. Times are of one machine's monotonic clock, and each line is written before what it tells of has effect, so what
causes something always comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Line = Mapping[str, Any]


class Violation(Exception):  # noqa: N818 (it is what is looked for, not an error of ours)
    """A line that must not be there.

    Attributes:
        rule: which of the rules above, in one word.
        line: the line at fault.
        shard, attempt: what it is about, to find the lines that belong to it.
    """

    def __init__(self, rule: str, message: str, line: Line, *, shard: int | None = None, attempt: str = "") -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule
        self.line = line
        self.shard = shard
        self.attempt = attempt


@dataclass(slots=True)
class Lease:
    """One attempt, as it was handed out.

    Attributes:
        index: the number under which its shard travels.
        check: the shard is a virtual one.
    """

    shard: int
    device: str
    epoch: int
    index: int = -1
    check: bool = False


@dataclass(slots=True)
class Epoch:
    """One writer's view of the job.

    Attributes:
        recovered: shards its log had when it opened.
        committed: those and its own, by now.
        accepted: attempts whose result it took and has not committed yet.
        held: by device, attempts handed out and not answered.
        verify: committed shards are provisional until they are verified.
        checked: checks that were answered, and by whom.
    """

    number: int
    source: str
    recovered: frozenset[int]
    committed: set[int]
    accepted: dict[str, tuple[int, str]] = field(default_factory=dict)
    durable: dict[str, tuple[int, str]] = field(default_factory=dict)
    held: dict[str, dict[str, int]] = field(default_factory=dict)
    finished: bool = False
    verify: bool = False
    checked: dict[str, str] = field(default_factory=dict)
    verified: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Agent:
    """One agent process.

    Attributes:
        leased: attempts that reached it.
        running: those it began.
        ready: finished, or in its journal when it started, so fit to be delivered.
    """

    leased: dict[str, int] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    ready: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)


class HistoryModel:
    """Replays the history of one job. Feed it with `follow`, then ask `end`.

    Args:
        items, per_shard: how the job is cut.
    """

    def __init__(self, items: int, per_shard: int) -> None:
        self.shards = -(-items // per_shard)
        self._items = items
        self._per_shard = per_shard
        self.leases: dict[str, Lease] = {}
        self.epochs: dict[int, Epoch] = {}
        self._current: dict[str, Epoch] = {}
        self._credits: dict[tuple[str, str], int] = {}
        self._accepted: set[int] = set()
        self.acknowledged: dict[int, tuple[int, str]] = {}
        self._told: dict[str, str] = {}
        self._agents: dict[str, Agent] = {}
        self._journals: dict[str, set[str]] = {}
        self.computed: list[tuple[str, str]] = []
        self.reissued: dict[str, str] = {}
        self._indexes: dict[int, tuple[int, int]] = {}

    def follow(self, line: Line) -> None:
        """Take in the next line.

        Raises:
            Violation: it must not be there.
        """
        role = "agent" if line["role"] == "agent" else "operator"
        rule = getattr(self, f"_{role}_{line['kind']}", None)
        if rule is None:
            raise Violation("history", f"nobody writes lines of kind {line['kind']!r}", line)
        rule(line)

    def end(self, last: Line) -> None:
        """The history is over, and the job should be.

        Raises:
            Violation: it is not.
        """
        if not any(epoch.finished for epoch in self.epochs.values()):
            raise Violation("end", "the job was never finished", last)
        missing = sorted(set(range(self.shards)) - self._newest().committed)
        if missing:
            raise Violation("end", f"shards {missing} are not committed", last, shard=missing[0])

    # ---- operators ----

    def _operator_process(self, line: Line) -> None:
        self._current.pop(line["source"], None)

    def _operator_gap(self, line: Line) -> None:
        raise Violation("history", f"{line['lost']} lines are missing", line)

    _agent_gap = _operator_gap

    def _operator_opened(self, line: Line) -> None:
        number = line["epoch"]
        if self.epochs and number <= max(self.epochs):
            raise Violation("fencing", f"epoch {number} opened after epoch {max(self.epochs)}", line)
        if (line["items"], line["perShard"]) != (self._items, self._per_shard):
            raise Violation("recovery", f"the job is cut as {line['items']}/{line['perShard']}", line)
        recovered = frozenset(parse_ranges(line["committed"]))
        for shard, (epoch, attempt) in self.acknowledged.items():
            if shard not in recovered:
                message = f"epoch {number} does not know shard {shard}, acknowledged in epoch {epoch}"
                raise Violation("recovery", message, line, shard=shard, attempt=attempt)
        unheard = sorted(recovered - self._accepted)
        if unheard:
            message = f"epoch {number} knows shards {unheard}, of which nobody had accepted a result"
            raise Violation("recovery", message, line, shard=unheard[0])
        epoch = Epoch(number, line["source"], recovered, set(recovered), verify="verified" in line)
        epoch.verified.update(parse_ranges(line.get("verified", "")))
        unknown = sorted(epoch.verified - recovered)
        if unknown:
            raise Violation("check", f"shards {unknown} are verified and not committed", line, shard=unknown[0])
        self.epochs[number] = self._current[line["source"]] = epoch

    def _operator_attached(self, line: Line) -> None:
        self._credits[line["source"], line["device"]] = line["credits"]

    def _operator_detached(self, line: Line) -> None:
        pass

    def _operator_leased(self, line: Line) -> None:
        epoch = self._epoch(line)
        device = line["device"]
        held = epoch.held.setdefault(device, {})
        check = line.get("check", False)
        for shard, attempt, *travels in line["shards"]:
            about = {"shard": shard, "attempt": attempt}
            if attempt in self.leases:
                raise Violation("lease", f"attempt {attempt} was handed out before", line, **about)
            if int(attempt[:8], 16) != epoch.number:
                raise Violation("lease", f"attempt {attempt} is not of epoch {epoch.number}", line, **about)
            if check and (shard < self.shards or not epoch.verify):
                raise Violation("check", f"{shard} is no number for a check", line, **about)
            if not check and (shard in epoch.committed or not 0 <= shard < self.shards):
                raise Violation("lease", f"shard {shard} is committed or does not exist", line, **about)
            if any(other == shard for other, _ in epoch.accepted.values()):
                raise Violation("lease", f"shard {shard} is on its way to disk", line, **about)
            if shard in held.values():
                raise Violation("lease", f"{device} has shard {shard} already", line, **about)
            index = travels[0] if travels else shard
            owner = self._indexes.setdefault(index, (epoch.number if check else 0, shard))
            if owner != (epoch.number if check else 0, shard):
                raise Violation("check", f"{owner} and {shard} travel under one number", line, **about)
            held[attempt] = shard
            self.leases[attempt] = Lease(shard, device, epoch.number, index, check)
        credits_ = self._credits.get((line["source"], device))
        if credits_ is None:
            raise Violation("lease", f"{device} never attached to this operator", line)
        if len(held) > credits_:
            raise Violation("lease", f"{device} holds {len(held)} shards with credit for {credits_}", line)

    def _operator_resumed(self, line: Line) -> None:
        lease = self._lease(line, line["attempt"], line["shard"], line["device"])
        self._epoch(line).held.setdefault(lease.device, {})[line["attempt"]] = lease.shard

    def _operator_sent(self, line: Line) -> None:
        for attempt in line["attempts"]:
            self._lease(line, attempt, None, line["device"])

    def _operator_returned(self, line: Line) -> None:
        held = self._epoch(line).held.get(line["device"], {})
        for attempt in line["attempts"]:
            held.pop(attempt, None)

    def _operator_gone(self, line: Line) -> None:
        held = self._epoch(line).held.get(line["device"], {})
        for attempt in set(held) - set(line["keep"]):
            del held[attempt]

    def _operator_cancelled(self, line: Line) -> None:
        if "device" in line:
            self._operator_returned(line)
        else:
            self._epoch(line).held.clear()

    def _operator_result(self, line: Line) -> None:
        attempt, shard, device = line["attempt"], line["shard"], line["device"]
        if line["verdict"] == "forged":
            return
        self._lease(line, attempt, shard, device)
        epoch = self._epoch(line)
        epoch.held.get(device, {}).pop(attempt, None)
        if line["verdict"] == "checked":
            epoch.checked[attempt] = device
        if line["verdict"] not in ("accepted", "given up"):
            return
        about = {"shard": shard, "attempt": attempt}
        if shard in epoch.committed:
            raise Violation("result", f"shard {shard} was accepted though it is committed", line, **about)
        if any(other == shard for other, _ in epoch.accepted.values()):
            raise Violation("result", f"shard {shard} was accepted twice", line, **about)
        epoch.accepted[attempt] = (shard, device)
        self._accepted.add(shard)

    def _operator_committed(self, line: Line) -> None:
        epoch = self._epoch(line)
        if line["epoch"] != epoch.number:
            raise Violation("commit", f"epoch {line['epoch']} speaks in epoch {epoch.number}", line)
        for shard, attempt, device, rows, failed in line["shards"]:
            about = {"shard": shard, "attempt": attempt}
            lease = self._lease(line, attempt, shard, device)
            if epoch.accepted.pop(attempt, None) != (lease.shard, lease.device):
                raise Violation("commit", f"nobody accepted attempt {attempt} of shard {shard}", line, **about)
            if shard in epoch.committed:
                raise Violation("commit", f"shard {shard} was committed twice", line, **about)
            if rows != min(self._per_shard, self._items - shard * self._per_shard) or not 0 <= failed <= rows:
                raise Violation("commit", f"shard {shard} has not {rows} rows, {failed} failed", line, **about)
            epoch.committed.add(shard)
            epoch.durable[attempt] = (shard, device)
            for newer in self.epochs.values():
                if newer.number > epoch.number and shard not in newer.recovered:
                    message = f"epoch {epoch.number} acknowledged shard {shard}, which epoch {newer.number} lacks"
                    raise Violation("fencing", message, line, **about)
            self.acknowledged[shard] = (epoch.number, attempt)

    def _operator_refused(self, line: Line) -> None:
        epoch = self._epoch(line)
        for attempt, (shard, _) in list(epoch.accepted.items()):
            if shard in line["shards"]:
                del epoch.accepted[attempt]

    def _operator_reopened(self, line: Line) -> None:
        epoch = self._epoch(line)
        for shard in line["shards"]:
            epoch.committed.discard(shard)
            epoch.verified.discard(shard)
            self.acknowledged.pop(shard, None)

    def _operator_verified(self, line: Line) -> None:
        epoch = self._epoch(line)
        for shard in line["shards"]:
            if shard not in epoch.committed:
                raise Violation("check", f"shard {shard} was verified and is not committed", line, shard=shard)
        epoch.verified.update(line["shards"])

    def _operator_settled(self, line: Line) -> None:
        epoch = self._epoch(line)
        for attempt in line["committed"]:
            if epoch.checked.get(attempt) == line["device"]:
                continue
            if epoch.durable.get(attempt, (0, ""))[1] != line["device"]:
                shard = self.leases[attempt].shard if attempt in self.leases else None
                message = f"{line['device']} was told that attempt {attempt} is committed, which it is not"
                raise Violation("settlement", message, line, attempt=attempt, shard=shard)
        for word in ("committed", "superseded", "refused"):
            for attempt in line[word]:
                self._told[attempt] = word

    def _operator_fenced(self, line: Line) -> None:
        pass

    def _operator_finished(self, line: Line) -> None:
        epoch = self._epoch(line)
        missing = sorted(set(range(self.shards)) - epoch.committed)
        if missing:
            raise Violation("end", f"finished without shards {missing}", line, shard=missing[0])
        provisional = sorted(epoch.committed - epoch.verified) if epoch.verify else []
        if provisional:
            raise Violation("end", f"finished with shards {provisional} unverified", line, shard=provisional[0])
        epoch.finished = True

    # ---- agents ----

    def _agent_process(self, line: Line) -> None:
        # What an earlier process of the device finished may be in its journal.
        agent = self._agents[line["source"]] = Agent()
        agent.ready |= self._journals.setdefault(line["device"], set())

    def _agent_welcomed(self, line: Line) -> None:
        pass

    _agent_lost = _agent_revoked = _agent_cancelled = _agent_returned = _agent_abandoned = _agent_welcomed

    def _agent_leased(self, line: Line) -> None:
        agent = self._agent(line)
        for index, attempt in line["shards"]:
            lease = self._lease(line, attempt, None, line["device"])
            if lease.index != index:
                message = f"attempt {attempt} travels as {index}, not {lease.index}"
                raise Violation("lease", message, line, shard=lease.shard, attempt=attempt)
            agent.leased[attempt] = index

    def _agent_begun(self, line: Line) -> None:
        agent, attempt = self._agent(line), line["attempt"]
        about = {"shard": line["shard"], "attempt": attempt}
        if agent.leased.get(attempt) != line["shard"]:
            raise Violation("device", f"{line['device']} began attempt {attempt} without a lease", line, **about)
        if attempt in agent.running:
            raise Violation("device", f"{line['device']} began attempt {attempt} twice", line, **about)
        agent.running.add(attempt)

    def _agent_finished(self, line: Line) -> None:
        agent, attempt = self._agent(line), line["attempt"]
        if attempt not in agent.running:
            message = f"{line['device']} finished attempt {attempt}, which it had not begun"
            raise Violation("device", message, line, attempt=attempt)
        agent.running.discard(attempt)
        self._finish(agent, line["device"], attempt)
        if not line["failed"]:
            self.computed.append((line["device"], attempt))

    def _finish(self, agent: Agent, device: str, attempt: str) -> None:
        agent.finished.add(attempt)
        # It may reach the journal although its process dies before it can say so.
        self._journals.setdefault(device, set()).add(attempt)

    def _agent_reissued(self, line: Line) -> None:
        agent, attempt, old = self._agent(line), line["attempt"], line["old"]
        if attempt not in agent.leased:
            message = f"{line['device']} answered attempt {attempt} without a lease"
            raise Violation("device", message, line, attempt=attempt)
        if old not in agent.ready | agent.finished:
            message = f"{line['device']} answered attempt {attempt} with {old}, which it does not have"
            raise Violation("device", message, line, attempt=attempt)
        if self.leases[old].shard != self.leases[attempt].shard:
            message = f"attempt {attempt} was answered with {old}, which is of another shard"
            raise Violation("device", message, line, attempt=attempt)
        self.reissued[attempt] = old
        self._finish(agent, line["device"], attempt)

    def _agent_journaled(self, line: Line) -> None:
        agent = self._agent(line)
        for attempt in line["attempts"]:
            if attempt not in agent.finished:
                message = f"{line['device']} wrote attempt {attempt} down, which it had not finished"
                raise Violation("device", message, line, attempt=attempt)
            agent.ready.add(attempt)

    def _agent_delivered(self, line: Line) -> None:
        agent = self._agent(line)
        for attempt in line["attempts"]:
            if attempt not in agent.ready:
                message = f"{line['device']} delivered attempt {attempt}, which it has not got"
                raise Violation("device", message, line, attempt=attempt)
            if attempt in agent.settled:
                message = f"{line['device']} delivered attempt {attempt}, which was settled"
                raise Violation("device", message, line, attempt=attempt)

    def _agent_settled(self, line: Line) -> None:
        agent = self._agent(line)
        for attempt in line["attempts"]:
            if attempt not in self._told:
                message = f"{line['device']} heard of a settlement of attempt {attempt}, which nobody sent"
                raise Violation("device", message, line, attempt=attempt)
            agent.settled.add(attempt)

    # ---- looking up ----

    def _epoch(self, line: Line) -> Epoch:
        epoch = self._current.get(line["source"])
        if epoch is None:
            raise Violation("history", f"{line['source']} has not opened the job", line)
        return epoch

    def _newest(self) -> Epoch:
        return self.epochs[max(self.epochs)]

    def _agent(self, line: Line) -> Agent:
        agent = self._agents.get(line["source"])
        if agent is None:
            raise Violation("history", f"{line['source']} does not begin with a process", line)
        return agent

    def _lease(self, line: Line, attempt: str, shard: int | None, device: str) -> Lease:
        lease = self.leases.get(attempt)
        if lease is None:
            raise Violation("result", f"attempt {attempt} was never handed out", line, shard=shard, attempt=attempt)
        if shard is not None and lease.shard != shard:
            message = f"attempt {attempt} is of shard {lease.shard}, not {shard}"
            raise Violation("result", message, line, shard=shard, attempt=attempt)
        if lease.device != device:
            message = f"attempt {attempt} is of {lease.device}, not of {device}"
            raise Violation("result", message, line, shard=lease.shard, attempt=attempt)
        return lease


def parse_ranges(text: str) -> Iterable[int]:
    """The numbers in text such as ``1-5,7``."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)

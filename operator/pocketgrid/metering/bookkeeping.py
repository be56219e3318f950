"""From events to postings: the rules of pay, for one job.

| event | posting |
|---|---|
| Delivered | Payer to Escrow: rows with a result times the price |
| Believed | Escrow to Earned |
| TakenBack, not believed | Escrow to Void |
| Confirmed | Payer to Earned: rows that agreed times the price |
| Sealed | what the parts before have not said: Payer or Escrow to Earned, Escrow to Void |

Each piece is in one state at a time, provisional → final or provisional → void, and each step is posted once. So no
order of events, no repetition and no crash in between can pay a piece twice. What was earned is never taken back.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import assert_never

from pocketgrid.metering.books import Account, AccountKind, Books, Posting
from pocketgrid.metering.events import Believed, Confirmed, Delivered, Event, Lost, Payee, Place, Sealed, TakenBack


@dataclass(slots=True)
class _Piece:
    place: Place
    payee: Payee
    rows: int
    final: bool = False


class Bookkeeper:
    """Books of one job, kept by folding its events.

    Attributes:
        books: the accounts.
        position: of the last event folded; events up to it are passed over, so that a log may be read again from any
            earlier point after a crash.
        rows: rows paid to each for results, and for confirming those of others.
        mended: rows that only a seal, or an entry that takes back, has proved: lines of the pieces are damaged.
    """

    def __init__(self, job: str) -> None:
        self.job = job
        self.books = Books()
        self.position = -1
        self.rows: tuple[Counter[Payee], Counter[Payee]] = (Counter(), Counter())
        self.mended = 0
        self._present: dict[int, _Piece] = {}
        self._gone: set[Place] = set()
        self._sealed: dict[int, range] = {}
        self._closed: set[int] = set()
        self._confirmed = 0

    def fold(self, position: int, event: Event) -> None:
        """Post what `event`, at `position` of the job's history, means. Positions up to the last are passed over."""
        if position <= self.position:
            return
        self.position = position
        match event:
            case Delivered():
                self._deliver(event)
            case Believed():
                for shards in event.shards:
                    for shard in shards:
                        self._believe(shard)
            case TakenBack():
                self._take_back(event)
            case Confirmed():
                if event.number > self._confirmed:
                    self._confirmed = event.number
                    self._pay(event.payee, event.rows, confirmed=True)
            case Sealed():
                self._seal(event)
            case Lost():
                self._closed.difference_update(self._sealed.pop(event.part, range(0)))
            case _:
                assert_never(event)

    # ---- steps of a piece ----

    def _deliver(self, event: Delivered) -> None:
        if event.shard in self._present or event.shard in self._closed or event.place in self._gone:
            return
        self._present[event.shard] = _Piece(event.place, event.payee, event.rows)
        self._move(AccountKind.PAYER, AccountKind.ESCROW, event.payee, event.rows)

    def _believe(self, shard: int) -> None:
        piece = self._present.get(shard)
        if piece is not None and not piece.final:
            piece.final = True
            self._move(AccountKind.ESCROW, AccountKind.EARNED, piece.payee, piece.rows)
            self.rows[0][piece.payee] += piece.rows

    def _take_back(self, event: TakenBack) -> None:
        if event.place in self._gone or event.shard in self._closed:
            return
        self._gone.add(event.place)
        piece = self._present.get(event.shard)
        if piece is not None and piece.place == event.place:
            if event.rows:
                self._believe(event.shard)
            self._drop(event.shard)
        elif event.rows:
            self.mended += event.rows
            self._pay(event.payee, event.rows)

    def _drop(self, shard: int) -> None:
        piece = self._present.pop(shard)
        if not piece.final:
            self._move(AccountKind.ESCROW, AccountKind.VOID, piece.payee, piece.rows)

    def _seal(self, event: Sealed) -> None:
        """The seal is the better witness: what it says and the pieces do not is paid, and the other way round is not.

        A piece that is final already stays paid.
        """
        if event.part in self._sealed:
            return
        due: Counter[Payee] = Counter()
        for payee, rows in event.work:
            due[payee] += rows
        for shard in event.shards:
            piece = self._present.get(shard)
            if piece is None:
                continue
            if piece.final or due[piece.payee] >= piece.rows:
                if not piece.final:
                    self.mended += piece.rows
                self._believe(shard)
                due[piece.payee] -= piece.rows
            self._drop(shard)
        for payee, rows in due.items():
            if rows > 0:
                self.mended += rows
                self._pay(payee, rows)
        self._sealed[event.part] = event.shards
        self._closed.update(event.shards)

    # ---- postings ----

    def _pay(self, payee: Payee, rows: int, *, confirmed: bool = False) -> None:
        self._move(AccountKind.PAYER, AccountKind.EARNED, payee, rows)
        self.rows[confirmed][payee] += rows

    def _move(self, source: AccountKind, target: AccountKind, payee: Payee, rows: int) -> None:
        amount = rows * payee.price
        if amount > 0:
            self.books.post(Posting(self._account(source, payee), self._account(target, payee), amount))

    def _account(self, kind: AccountKind, payee: Payee) -> Account:
        if kind is AccountKind.PAYER:
            return Account(kind, self.job)
        return Account(kind, self.job, payee.owner, payee.device)

"""The books of jobs that the engine has run, with a device that lies after it has earned trust."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketgrid.ledger.reading import read_ledger
from pocketgrid.ledger.report import ledger_document
from pocketgrid.metering.books import AccountKind
from pocketgrid.metering.settlements import settle
from pocketgrid.model.device import HardwareClass
from pocketgrid.model.money import PriceList
from pocketgrid.model.selectors import LabelSelector
from pocketgrid.model.trust import Verification, VerificationMode
from pocketgrid.model.view import Stage
from pocketgrid.storage.logentries import Checked, decode_line
from tests.unit.engine.engine_world import JobMaker, job_reaches
from tests.unit.engine.test_engine_verification import Liar, attach, strangers

ITEMS, PRICE = 1000, 7


def checks_in(folder: Path) -> list[Checked]:
    lines = b"\n".join(p.read_bytes() for p in (folder / "_pocketgrid/log").iterdir()).split(b"\n")
    entries = {e.number: e for e in map(decode_line, lines) if isinstance(e, Checked)}
    return list(entries.values())


@pytest.mark.parametrize("mode", [VerificationMode.AUDIT, VerificationMode.QUORUM, VerificationMode.ADAPTIVE])
async def test_each_row_that_agreed_is_paid_and_no_other(tmp_path: Path, mode: VerificationMode) -> None:
    spec = JobMaker(tmp_path)(ITEMS, 20, verification=Verification(mode))
    async with strangers(tmp_path) as engine:
        engine.set_classes({"all": HardwareClass("all", LabelSelector(), PriceList(PRICE))})
        attach(engine, "ada", "bob", "cyd", "dan")
        (liar,) = attach(engine, "eve", kind=Liar, honest=100)
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
    ledger = read_ledger(spec.output.uri)
    assert ledger.differences == ()
    assert ledger.keeper.mended == 0
    assert ledger.keeper.books.total(AccountKind.ESCROW) == 0
    parties = ledger_document(ledger)["parties"]
    assert sum(p["rows_verified"] for p in parties) == ITEMS, "each row is paid once to whoever brought it"
    for party in parties:
        assert party["earned_micro"] == PRICE * (party["rows_verified"] + party["rows_checked"])
    checks = checks_in(tmp_path / "out-job")
    assert sum(p["rows_checked"] for p in parties) == sum(c.agreed for c in checks)
    assert liar.told > 0, "it had no occasion"
    paid = {p["owner"]: p["rows_verified"] + p["rows_checked"] for p in parties}
    assert paid.get("eve", 0) <= liar.seen - liar.told, "a wrong row was paid"
    assert view.cost is not None
    assert view.cost.spent_micro == ledger.keeper.books.total(AccountKind.EARNED)
    first = settle([ledger.statement], currency="PI")
    assert first.total == view.cost.spent_micro
    assert settle([ledger.statement], currency="PI", previous=json.loads(json.dumps(first.document()))).total == 0

"""`pocketgrid ledger` over outputs that a result store has written: figures, damage, settlements."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from pocketgrid.app import app
from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.ledger.reading import read_ledger
from pocketgrid.ledger.signing import PRIVATE_KEY, PUBLIC_KEY, public_key, signature_problem, signing_key
from pocketgrid.model.ids import DeviceName, ShardIndex
from pocketgrid.storage.logentries import encode_lines
from pocketgrid.storage.logreading import read_log
from pocketgrid.storage.results import Check, ResultStore, StoreLimits
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys, tensor

ITEMS, PER_SHARD, SHARDS = 14, 3, 5
OWNERS = {"ada": 5_000_000, "bo": 7}


def by(owner: str, shard: int, base: int = 0) -> Any:
    rows = min(PER_SHARD, ITEMS - shard * PER_SHARD)
    result = a_result(shard, (tensor(np.arange(rows) + base),))
    return replace(result, owner=owner, device=DeviceName(f"{owner or 'no'}-phone"), price=OWNERS.get(owner, 3))


def opened(folder: Path, uid: str = "job-1") -> ResultStore:
    store = ResultStore.open(a_job(folder, ITEMS, uid=uid), no_keys, limits=StoreLimits(part_rows=6))
    store.plan(PER_SHARD, verify=True)
    return store


def half_paid(folder: Path, uid: str = "job-1") -> None:
    """Shards 0 and 1 are final (ada, 30.00), 2 is held (bo, 21 millionths), 3 void; bo has checked four rows."""
    store = opened(folder, uid)
    store.commit([by("ada", 0), by("ada", 1), by("bo", 2), by("bo", 3)])
    store.settle(
        verified=[ShardIndex(0), ShardIndex(1)],
        reopened=[ShardIndex(3)],
        checks=[Check(by("bo", 0).worker, agreed=4, disagreed=1, shards=(ShardIndex(0),))],
    )
    store.seal()
    store.close()


def finish(folder: Path, uid: str = "job-1", rest: str = "ada") -> None:
    store = opened(folder, uid)
    missing = [n for n in range(SHARDS) if n not in store.recovered.committed]
    store.commit([by(rest, n, 7) for n in missing])
    store.settle(verified=[ShardIndex(n) for n in range(SHARDS)])
    store.finish()
    store.close()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ledger", *map(str, arguments)])


def told(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def exported(uri: Path, *arguments: object, out: str = "pay") -> tuple[Path, dict[str, Any]]:
    folder = uri.parent
    summary = told("export", uri, "--out", folder / out, "--state-dir", folder / "state", *arguments)
    path = Path(summary["files"][0])
    return path, json.loads(path.read_bytes())


# ---- show and verify ----


def test_show_says_who_gets_what(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    (job,) = told("show", tmp_path / "out")["jobs"]
    assert (job["earned_micro"], job["held_micro"], job["void_micro"]) == (30_000_028, 21, 21)
    assert job["parties"] == [
        {
            "owner": "ada", "device": "ada-phone", "rows_verified": 6, "rows_checked": 0,
            "earned_micro": 30_000_000, "held_micro": 0, "void_micro": 0,
        },
        {
            "owner": "bo", "device": "bo-phone", "rows_verified": 0, "rows_checked": 4,
            "earned_micro": 28, "held_micro": 21, "void_micro": 21,
        },
    ]  # fmt: skip
    result = run("show", tmp_path / "out")
    assert result.exit_code == 0
    assert "30.00" in result.stdout
    assert "0.000028" in result.stdout


def test_all_ways_to_the_figures_agree_to_the_end(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    assert told("verify", tmp_path / "out")["intact"] is True
    finish(tmp_path / "out")
    report = told("verify", tmp_path / "out")
    assert report["intact"] is True
    assert report["jobs"][0]["finished"] is True
    assert report["jobs"][0]["name"] == "default/test"
    assert "as it should be" in run("verify", tmp_path / "out").stdout


def test_a_job_without_verification_pays_nothing_and_says_so(tmp_path: Path) -> None:
    store = ResultStore.open(a_job(tmp_path / "out", ITEMS), no_keys)
    store.plan(PER_SHARD)
    store.commit([by("ada", n) for n in range(SHARDS)])
    store.finish()
    store.close()
    assert "verifies nothing" in run("show", tmp_path / "out").stdout
    assert told("show", tmp_path / "out")["owners"] == []
    assert told("verify", tmp_path / "out")["intact"] is True


def test_a_log_of_version_1_can_be_asked_too(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "storage_write/output_of_version_1", tmp_path / "out")
    assert told("show", tmp_path / "out")["jobs"][0]["earned_micro"] == 0


def edit(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def test_a_manifest_whose_cost_was_changed_differs(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    finish(tmp_path / "out")
    manifest = tmp_path / "out/_manifest.json"
    edit(manifest, b'"cost": ', b'"cost": 1')
    result = run("verify", tmp_path / "out")
    assert result.exit_code == 1
    assert "was changed after the job had finished" in result.stdout
    manifest.unlink()
    result = run("verify", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert "is missing" in json.loads(result.stdout)["differences"][0]


def test_a_seal_that_pays_other_than_its_lines_differs_and_nothing_is_exported(tmp_path: Path) -> None:
    """As an operator with a fault would write it: each line is sound for itself, but they do not agree."""
    half_paid(tmp_path / "out")
    log = tmp_path / "out/_pocketgrid/log"
    state = read_log(log).state
    sealed = state.sealed[0]
    wrong = replace(sealed, work=tuple(s._replace(rows=s.rows - 2) for s in sealed.work))
    (path,) = log.iterdir()
    edit(path, encode_lines([sealed]), encode_lines([wrong]))
    result = run("verify", tmp_path / "out")
    assert result.exit_code == 1
    assert "its lines come to 30000000 micro-units, the log's running sums to 20000000" in result.stdout
    result = run("export", tmp_path / "out", "--out", tmp_path / "pay", "--state-dir", tmp_path / "state")
    assert result.exit_code == 1
    assert not (tmp_path / "pay").exists()


def test_lost_lines_of_a_sealed_part_are_made_good_by_its_seal(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    (path,) = (tmp_path / "out/_pocketgrid/log").iterdir()
    data = path.read_bytes()
    start = data.index(b'["c",1,') - 9
    stop = data.index(b"\n", start)
    path.write_bytes(data[:start] + b"x" * (stop - start) + data[stop:])
    report = told("verify", tmp_path / "out")
    assert report["intact"] is True
    assert any("3 rows are proved by seals only" in note for note in report["notes"])
    assert report["jobs"][0]["earned_micro"] == 30_000_028


def test_what_cannot_be_read_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    result = run("verify", tmp_path / "none", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["intact"] is None
    (tmp_path / "empty/_pocketgrid/log").mkdir(parents=True)
    assert run("show", tmp_path / "empty").exit_code == 3
    assert isinstance(run("verify").exception, InvalidSpecError)
    assert isinstance(run("show", "s3://bucket/x").exception, InvalidSpecError)


# ---- settlements ----


def test_the_same_logs_give_the_same_files(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    first, document = exported(tmp_path / "out")
    before = (first.read_bytes(), first.with_suffix(".csv").read_bytes(), first.stat().st_mtime_ns)
    again, _ = exported(tmp_path / "out")
    assert again == first
    assert (first.read_bytes(), first.with_suffix(".csv").read_bytes(), first.stat().st_mtime_ns) == before
    opened(tmp_path / "out").close()  # a restart of the operator is no new work
    elsewhere, _ = exported(tmp_path / "out", out="other")
    assert (elsewhere.name, elsewhere.read_bytes()) == (first.name, before[0])
    assert document["total_micro"] == 30_000_028
    with first.with_suffix(".csv").open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert [(r["owner"], r["amount"], r["amount_micro"]) for r in rows] == [
        ("ada", "30.00", "30000000"), ("bo", "0.000028", "28"),
    ]  # fmt: skip


def test_a_later_export_pays_only_what_came_since(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    first, document = exported(tmp_path / "out", "--currency", "PI")
    finish(tmp_path / "out", rest="bo")
    second, later = exported(tmp_path / "out", "--currency", "PI", "--since", first)
    assert later["previous"] == document["id"]
    assert {line["owner"]: line["amount_micro"] for line in later["lines"]} == {"bo": (3 + 3 + 2) * 7}
    earned = told("show", tmp_path / "out")["owners"]
    paid = dict.fromkeys(OWNERS, 0)
    for line in (*document["lines"], *later["lines"]):
        paid[line["owner"]] += line["amount_micro"]
    assert [{"owner": o, "earned_micro": n} for o, n in sorted(paid.items())] == earned
    third, last = exported(tmp_path / "out", "--currency", "PI", "--since", second)
    assert last["lines"] == []
    assert third != second


def test_a_copy_of_an_output_is_not_paid_again(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    first, _ = exported(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    _, later = exported(tmp_path / "copy", "--since", first)
    assert later["lines"] == []
    result = run(
        "export", tmp_path / "out", tmp_path / "copy", "--out", tmp_path / "pay", "--state-dir", tmp_path / "s"
    )
    assert isinstance(result.exception, InvalidSpecError)
    assert result.exception.reason == "DuplicateLog"


def test_payees_are_named_and_others_wait(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    finish(tmp_path / "out", rest="")
    payees = tmp_path / "payees.yaml"
    payees.write_text("ada: a1111111-aaaa\n")
    path, document = exported(tmp_path / "out", "--payees", payees, "--period", "2026-11")
    (line,) = document["lines"]
    assert line["payment"] == {
        "amount": "30.00",
        "memo": "PocketGrid 2026-11",
        "metadata": {"payment_id": line["payment_id"]},
        "uid": "a1111111-aaaa",
    }
    assert document["withheld"] == [
        {"owner": "", "amount_micro": 15, "reason": "NoOwner"},
        {"owner": "bo", "amount_micro": 49, "reason": "NoPayee"},
    ]
    where = ("--out", tmp_path / "pay", "--state-dir", tmp_path / "state")
    shown = run("export", tmp_path / "out", *where, "--payees", payees)
    assert "withheld: 0.000049 of bo: no payee is known" in shown.stdout
    payees.write_text("ada: a1111111-aaaa\nbo: b2\n")
    _, later = exported(tmp_path / "out", "--payees", payees, "--since", path)
    assert [(line["owner"], line["amount_micro"]) for line in later["lines"]] == [("bo", 49)]


@pytest.mark.parametrize("text", ["- ada", "ada: 5", "ada: ''", "ada: [", "5: x"])
def test_payees_are_a_mapping_of_texts(tmp_path: Path, text: str) -> None:
    half_paid(tmp_path / "out")
    (tmp_path / "payees.yaml").write_text(text)
    result = run("export", tmp_path / "out", "--out", tmp_path / "pay", "--state-dir", tmp_path / "state",
                 "--payees", tmp_path / "payees.yaml")  # fmt: skip
    assert isinstance(result.exception, InvalidSpecError)
    assert result.exception.reason == "InvalidPayees"


def test_a_settlement_is_checked_with_the_public_key_alone(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    path, document = exported(tmp_path / "out")
    public = tmp_path / "state/ledger" / PUBLIC_KEY
    check = ("verify", "--settlement", path, "--public-key", public)
    assert run(*check).exit_code == 0
    assert told(*check[:1], tmp_path / "out", *check[1:])["notes"] == []
    finish(tmp_path / "out")
    report = told(*check[:1], tmp_path / "out", *check[1:])
    assert report["notes"] == ["the log of job job-1 has grown since it was settled"]
    edit(path.with_suffix(".csv"), b"30.00", b"90.00")
    assert "does not say what" in run(*check).stdout
    path.with_suffix(".csv").unlink()
    assert run(*check).exit_code == 0
    for old, new in ((b'"amount":"30.00"', b'"amount":"90.00"'), (document["id"].encode(), b"0" * 32)):
        changed = tmp_path / "changed.json"
        changed.write_bytes(path.read_bytes())
        edit(changed, old, new)
        result = run("verify", "--settlement", changed, "--public-key", public)
        assert result.exit_code == 1
        assert "changed after it had been signed" in result.stdout
        where = ("--out", tmp_path / "pay", "--state-dir", tmp_path / "state")
        result = run("export", tmp_path / "out", *where, "--since", changed)
        assert isinstance(result.exception, InvalidSpecError)


def test_a_settlement_of_other_logs_or_of_another_key_is_told_apart(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    half_paid(tmp_path / "other", uid="job-2")
    path, _ = exported(tmp_path / "out")
    state = ("--state-dir", tmp_path / "state")
    result = run("verify", tmp_path / "other", "--settlement", path, *state)
    assert result.exit_code == 1
    assert "says nothing of job job-2" in result.stdout
    signing_key(tmp_path / "state2/ledger")
    result = run("verify", "--settlement", path, "--state-dir", tmp_path / "state2")
    assert result.exit_code == 1
    assert "another key has signed it" in result.stdout
    assert run("verify", "--settlement", tmp_path / "none.json", *state, "--json").exit_code == 3


def test_a_settlement_that_pays_more_than_the_log_says_is_found(tmp_path: Path) -> None:
    half_paid(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    finish(tmp_path / "out")
    path, _ = exported(tmp_path / "out")
    result = run("verify", tmp_path / "before", "--settlement", path, "--state-dir", tmp_path / "state")
    assert result.exit_code == 1
    assert "has paid ada" in result.stdout


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "x"}', '{"format": "pocketgrid-settlement", "version": 9}'])
def test_what_is_no_settlement_is_refused(tmp_path: Path, text: str) -> None:
    signing_key(tmp_path / "ledger")
    (tmp_path / "s.json").write_text(text)
    result = run("verify", "--settlement", tmp_path / "s.json", "--state-dir", tmp_path)
    assert isinstance(result.exception, InvalidSpecError)


# ---- keys ----


def test_all_who_ask_for_the_key_at_once_get_the_same(tmp_path: Path) -> None:
    found: list[bytes] = []
    gate = threading.Barrier(8, timeout=20)

    def ask() -> None:
        gate.wait()
        found.append(signing_key(tmp_path / "ledger").private_bytes_raw())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert (tmp_path / "ledger" / PRIVATE_KEY).stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in (tmp_path / "ledger").iterdir()) == [PRIVATE_KEY, PUBLIC_KEY]


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    signing_key(tmp_path)
    with pytest.raises(InvalidSpecError, match="no public key"):
        public_key(tmp_path / PRIVATE_KEY)
    (tmp_path / PRIVATE_KEY).write_text("rubbish")
    with pytest.raises(StoreError, match="no private key"):
        signing_key(tmp_path)
    assert signature_problem({"signature": {"algorithm": "Ed25519"}}, public_key(tmp_path / PUBLIC_KEY)) is not None
    assert signature_problem({}, public_key(tmp_path / PUBLIC_KEY)) is not None


def test_the_log_may_go_on_while_it_is_read(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", 0)])
    store.settle(verified=[ShardIndex(0)])
    assert read_ledger(str(tmp_path / "out")).statement.earned == {"ada": 15_000_000}
    store.commit([by("ada", 1)])  # it was not fenced off
    store.settle(verified=[ShardIndex(1)])
    assert read_ledger(str(tmp_path / "out")).statement.earned == {"ada": 30_000_000}
    store.close()

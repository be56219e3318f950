"""What docs/data.md tells people to write is accepted, and the reasons and limits it names are real."""

import re
from pathlib import Path

import pytest
import yaml

from pocketgrid.api.convert import to_job_spec
from pocketgrid.engine import feeder
from pocketgrid.settings import EngineSettings
from pocketgrid.storage import datasets
from pocketgrid.storage.binding import SEARCH_LIMIT
from pocketgrid.storage.datasets import base, files, jsonl, lines, parquet
from pocketgrid.storage.places import ranged, spool
from pocketgrid.storage.reasons import ItemReason, Refusal
from pocketgrid.storage.results.verification import Damage
from tests.unit.api.manifests import GONE, changed, minimal_job

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "data.md").read_text()
PREPROCESSING = (DOCS / "preprocessing.md").read_text()
WORDS = " ".join(PAGE.split())


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_the_inputs_shown_are_accepted(text: str) -> None:
    body = changed(minimal_job({"spec.input": GONE}), {"spec.input": yaml.safe_load(text)["input"]})
    assert to_job_spec(body).input.places


def test_every_reason_named_exists() -> None:
    known = {value for kind in (Refusal, ItemReason) for name, value in vars(kind).items() if name.isupper()}
    known |= {"InputChanged", "InputUnreadable", "DuplicateKeys"}
    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][A-Za-z]+)+|Unreadable)`", PAGE))
    assert named <= known
    elsewhere = {value for name, value in vars(ItemReason).items() if name.isupper()} - named
    assert all(f"`{reason}`" in PREPROCESSING for reason in elsewhere)


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        (f"At most {datasets.MOST_FILES:,} files that hold items, or {datasets.MOST_ITEM_FILES:,}", None),
        ("first 256 lines; a column that is used and not among them is looked for up to line 1,024", None),
        (f"Files of more than {files.LIMIT_BYTES >> 20} MiB", None),
        (f"first {SEARCH_LIMIT:,} rows not one", None),
        (f"ranges of {ranged.BLOCK_BYTES >> 20} to {ranged.LARGEST_REQUEST_BYTES >> 20} MiB", None),
        (f"{ranged.CONNECT_SECONDS:.0f} s (S3) or {ranged.SILENCE_SECONDS:.0f} s (web) to connect", None),
        (f"within {ranged.ATTEMPT_SECONDS:.0f} s, and is tried four times", ranged.ATTEMPTS == 4),
        (f"One data set may take {spool.LIMIT_BYTES >> 30} GiB there, and {spool.KEPT_FREE_BYTES >> 30} GiB", None),
        (f"8 bytes for {lines.STRIDE} lines", None),
        (f"pieces of at most {base.BITE_BYTES >> 20} MiB", None),
        (f"{parquet.CACHE_BYTES >> 20} MiB for a file and of three files", parquet.OPEN_FILES == 3),
        (f"remote files, {ranged.CACHE_BYTES >> 20} MiB in all", None),
        (f"every {EngineSettings().readmission_seconds:.0f} s, so a file that arrives late", None),
        (f"tries again every {feeder.READ_RETRY_S:.0f} s", None),
    ],
)
def test_every_limit_named_is_the_real_one(told: str, meant: bool | None) -> None:
    assert told in WORDS
    assert meant in (None, True)


def test_limits_that_are_written_out() -> None:
    assert (jsonl._SAMPLE_LINES, jsonl._SEARCHED_LINES) == (256, 1024)
    assert Damage.KEYS == "DuplicateKeys"
    assert parquet.WHOLE_BYTES == 16 << 20

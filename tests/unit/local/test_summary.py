"""What a local run says at its end of work that was lost or done twice."""

import io
import json

from rich.console import Console

from pocketgrid.local.progress import print_summary, summary_json
from pocketgrid.local.run import LocalOutcome
from pocketgrid.model.ids import JobUid, ModelDigest
from pocketgrid.model.job import InputFormat, InputRef, JobSpec, ModelRef, OutputFormat, OutputRef
from pocketgrid.model.view import JobView, Stage


def an_outcome() -> LocalOutcome:
    spec = JobSpec(
        uid=JobUid("uid"),
        namespace="default",
        name="job",
        model=ModelRef("file:///m", ModelDigest("0" * 64)),
        input=InputRef("file:///d", InputFormat.NPY),
        output=OutputRef("file:///o", OutputFormat.PARQUET),
    )
    view = JobView(spec, Stage.COMPLETE, items=10, items_done=10, attempts_lost=4, copies=3, duplicates=2)
    return LocalOutcome((view,), {})


def test_scripts_learn_what_was_done_in_vain() -> None:
    (job,) = json.loads(summary_json(an_outcome()))["jobs"]
    assert job["attempts"] == {"lost": 4, "copies": 3, "duplicates": 2}


def test_people_do_too() -> None:
    text = io.StringIO()
    print_summary(Console(file=text, width=200), an_outcome())
    (header,) = [line for line in text.getvalue().splitlines() if "in vain" in line]
    (row,) = [line for line in text.getvalue().splitlines() if "default/job" in line]
    columns = [cell.strip() for cell in header.split("┃")]
    assert [cell.strip() for cell in row.split("│")][columns.index("in vain")] == "2"

"""The committed protobuf code is what its source generates."""

import re
from pathlib import Path

from hack.gen_protos import ROOT, main

GENERATED = ("agent_pb2.py", "agent_pb2.pyi", "agent_pb2_grpc.py")


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    assert main(tmp_path) == 0
    for name in GENERATED:
        fresh = (tmp_path / "pocketgrid/wire/v1" / name).read_text()
        committed = (ROOT / "operator/pocketgrid/wire/v1" / name).read_text()
        assert fresh == committed, f"{name} is stale; run `make generate` and commit the result"


def test_every_field_says_what_it_means() -> None:
    source = (ROOT / "operator/pocketgrid/wire/v1/agent.proto").read_text()
    # The alternatives of a oneof are messages, which explain themselves where they are defined.
    source = re.sub(r"oneof \w+ \{.*?\n  \}", "", source, flags=re.DOTALL)
    source = re.sub(r"enum \w+ \{.*?\}", "", source, flags=re.DOTALL)
    fields = re.findall(r"^ +(?:optional |repeated )?[\w.<>, ]+ \w+ = \d+;.*$", source, re.MULTILINE)
    assert len(fields) > 80
    assert [line for line in fields if "//" not in line] == []

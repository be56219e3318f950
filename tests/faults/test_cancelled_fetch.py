"""A device that vanishes while its model is being read leaves no open file behind."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pocketgrid.gateway.fetching import stream_model
from pocketgrid.wire.v1 import agent_pb2 as pb


class SlowPath(type(Path())):
    """A path on a slow disk: opening takes until `released`."""

    def open(self, *arguments: Any, **options: Any) -> Any:
        self.entered.set()
        assert self.released.wait(10)
        file = super().open(*arguments, **options)
        self.files.append(file)
        self.opened.set()
        return file


async def test_no_file_outlives_a_cancelled_fetch(tmp_path) -> None:
    (tmp_path / "model").write_bytes(b"m" * 1000)
    path = SlowPath(tmp_path / "model")
    path.entered, path.released, path.opened = threading.Event(), threading.Event(), threading.Event()
    path.files = []
    model = SimpleNamespace(path=path, size_bytes=1000)
    engine = SimpleNamespace(devices=SimpleNamespace(model_for=lambda *_: model))
    session = SimpleNamespace(identity=SimpleNamespace(name="device"), fetches=0, ending=asyncio.Event())
    request = pb.FetchModelRequest(sha256="0" * 64).SerializeToString()

    async def fetch() -> None:
        async for _ in stream_model(engine, session, request, SimpleNamespace()):
            pass

    fetching = asyncio.create_task(fetch())
    assert await asyncio.to_thread(path.entered.wait, 10)
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    path.released.set()
    assert await asyncio.to_thread(path.opened.wait, 10)
    async with asyncio.timeout(10):
        while True:
            if all(file.closed for file in path.files):
                break
            await asyncio.sleep(0.005)
    assert session.fetches == 0

"""A kubeconfig that leads through a proxy which misbehaves on purpose."""

from __future__ import annotations

import random
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.proxy import FaultProxy


def proxy_to(port: int) -> FaultProxy:
    """A way to `port` of 127.0.0.1 that does nothing bad yet."""
    return FaultProxy(port, random.Random(0))


async def sever(link: FaultProxy) -> None:
    """Nobody gets through, and who was connected learns of it."""
    link.refuse()
    link.cut(reset=True)


def port_of(kubeconfig: Path) -> int:
    """The API server's port."""
    port = urlsplit(_server(kubeconfig.read_text(encoding="utf-8"))).port
    assert port is not None
    return port


def through(kubeconfig: Path, link: FaultProxy, copy: Path) -> Path:
    """A copy of a kubeconfig that leads through `link`."""
    text = kubeconfig.read_text(encoding="utf-8")
    copy.write_text(text.replace(_server(text), f"https://127.0.0.1:{link.port}"), encoding="utf-8")
    copy.chmod(0o600)
    return copy


def _server(text: str) -> str:
    return next(line.split("server:", 1)[1].strip() for line in text.splitlines() if "server:" in line)

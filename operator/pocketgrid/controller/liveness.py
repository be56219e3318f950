"""Answers liveness probes: as long as the event loop turns, the process lives, whether it leads or waits.

Not kopf's own endpoint, which would be there only while this process leads; a waiting operator would be killed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


@asynccontextmanager
async def serve_liveness(endpoint: str | None, leading: Callable[[], bool]) -> AsyncIterator[None]:
    """Serve at `endpoint`, such as ``http://0.0.0.0:8080/healthz``, until the end of the block; None: do not.

    Raises:
        ValueError: the endpoint is not a plain HTTP URL with a port.
        OSError: the port is taken.
    """
    if endpoint is None:
        yield
        return
    from aiohttp import web

    url = urlsplit(endpoint)
    if url.scheme != "http" or not url.hostname or not url.port:
        raise ValueError(f"liveness endpoint {endpoint!r} must look like http://0.0.0.0:8080/healthz")

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"leading": leading()})

    application = web.Application()
    application.add_routes([web.get(url.path or "/", answer)])
    runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, url.hostname, url.port).start()
        yield
    finally:
        await runner.cleanup()

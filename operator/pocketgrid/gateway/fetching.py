"""Hands out the bytes of models: to a device that has a work order for one, for as long as it has it.

Not here: who has which work order (`engine`), where a model's file lies (`storage`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.session import DeviceSession
from pocketgrid.model.ids import DeviceName, ModelDigest
from pocketgrid.wire.framing import MODEL_CHUNK_BYTES
from pocketgrid.wire.v1 import agent_pb2 as pb

log = logging.getLogger(__name__)

FETCHES_AT_ONCE = 8
"""Of one device. An agent fetches each model once; each fetch keeps a thread busy."""


async def stream_model(
    engine: Engine, session: DeviceSession, request: bytes, context: aio.ServicerContext[Any, Any]
) -> AsyncIterator[pb.ModelChunk]:
    """The chunks a device asked for, from an offset on. What goes wrong ends the call with a status that says so."""
    try:
        wanted = pb.FetchModelRequest.FromString(request)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unreadable FetchModelRequest")
        raise
    if session.fetches >= FETCHES_AT_ONCE:
        message = f"{session.fetches} fetches are under way; end one first"
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
    session.fetches += 1
    try:
        async for chunk in _chunks(engine, session, wanted, context):
            yield chunk
    finally:
        session.fetches -= 1


async def _chunks(
    engine: Engine,
    session: DeviceSession,
    request: pb.FetchModelRequest,
    context: aio.ServicerContext[Any, Any],
) -> AsyncIterator[pb.ModelChunk]:
    device, digest = DeviceName(session.identity.name), ModelDigest(request.sha256)
    model = engine.devices.model_for(device, digest)
    if model is None:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no work order names that model")
        raise AssertionError("abort returns never")
    if request.offset > model.size_bytes:
        message = f"offset {request.offset} is beyond the model's {model.size_bytes} bytes"
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, message)
    loop = asyncio.get_running_loop()
    offset = request.offset
    try:
        while offset < model.size_bytes and not session.ending.is_set():
            if engine.devices.model_for(device, digest) is None:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the work order was withdrawn")
            wanted = min(MODEL_CHUNK_BYTES, model.size_bytes - offset)
            data = await loop.run_in_executor(None, _read, model.path, offset, wanted)
            if not data:
                break
            yield pb.ModelChunk(offset=offset, total_bytes=model.size_bytes, data=data)
            offset += len(data)
    except OSError as exc:
        log.warning("model unreadable path=%s cause=%s", model.path, exc)
        await context.abort(grpc.StatusCode.NOT_FOUND, f"the operator cannot read the model: {exc.strerror}")
    if session.ending.is_set():
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the session has ended; dial Attach first")
    if offset < model.size_bytes:
        log.warning("model truncated path=%s size=%d", model.path, offset)
        await context.abort(grpc.StatusCode.NOT_FOUND, "the model's file became shorter since the job was admitted")


def _read(path: Path, offset: int, size: int) -> bytes:
    # Opened anew for each chunk: a call may be cancelled at any moment, and a file that a thread has just opened for it
    # would belong to nobody.
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)

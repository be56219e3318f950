"""How kopf is set up. What the handlers do is tested against a real API server."""

import kopf
import pytest

from pocketgrid.controller.handlers import FINALIZER, GenerationStorage, build_settings
from pocketgrid.controller.intake import IMMUTABLE
from pocketgrid.controller.liveness import serve_liveness


def body(generation: int, **spec: object) -> kopf.Body:
    return kopf.Body({"metadata": {"generation": generation, "labels": {"a": "b"}}, "spec": spec, "status": {"x": 1}})


def test_objects_are_compared_by_generation_alone() -> None:
    storage = GenerationStorage(prefix="pocketgrid.dev", v1=False)
    assert storage.build(body=body(3, labels=["x"] * 100_000)) == {"metadata": {"generation": 3}}
    assert storage.build(body=body(3)) != storage.build(body=body(4))


def test_what_kopf_leaves_in_objects_bears_our_name() -> None:
    settings = build_settings()
    assert settings.persistence.finalizer == FINALIZER == "pocketgrid.dev/job"
    assert settings.persistence.progress_storage.prefix == "pocketgrid.dev"
    assert settings.persistence.diffbase_storage.prefix == "pocketgrid.dev"


def test_kopf_never_kills_the_process() -> None:
    assert build_settings().process.ultimate_exiting_timeout is None


def test_the_immutable_fields_are_those_of_the_api() -> None:
    assert set(IMMUTABLE) == {"model", "input", "output", "sharding", "verification"}


@pytest.mark.parametrize("endpoint", ["https://0.0.0.0:1/x", "http://0.0.0.0/x", "8080"])
async def test_a_liveness_endpoint_that_cannot_be_served_is_told(endpoint: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        async with serve_liveness(endpoint, lambda: True):
            pass


async def test_liveness_is_answered_whether_leading_or_not(unused_tcp_port: int) -> None:
    import aiohttp

    endpoint = f"http://127.0.0.1:{unused_tcp_port}/healthz"
    async with (
        serve_liveness(endpoint, lambda: False),
        aiohttp.ClientSession() as session,
        session.get(endpoint) as response,
    ):
        assert response.status == 200
        assert await response.json() == {"leading": False}

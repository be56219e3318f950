"""Work that asks for something new goes only to agents that can do it, and a person is told why the others idle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pocketgrid.gateway.convert import read_hello, write_order
from pocketgrid.model.decoding import ImageDecode, PixelLayout, PixelMode
from pocketgrid.model.device import AgentFeature
from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef, JobSpec
from pocketgrid.model.view import Stage
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import codec
from tests.fakes.devices import FakeDevice
from tests.fakes.pages import encoded
from tests.unit.engine.engine_world import JobMaker, an_engine, job_reaches, until, view_of

SCALED = ImageDecode(4, 1, mode=PixelMode.GRAY, layout=PixelLayout.CHW, scale=0.5)


def image_job(tmp_path, decode: ImageDecode) -> JobSpec:
    """Pictures of one line of four grey pixels, for a model that takes [n, 1, 4]."""
    from tests.fakes.models import write_affine_model

    images = [encoded(Image.fromarray(np.full((1, 4), n, np.uint8)), "PNG") for n in range(20)]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), tmp_path / "images.parquet")
    make = JobMaker(tmp_path)
    spec = make()
    sha256 = write_affine_model(tmp_path / "grey.onnx", shape=(1, 4))
    binding = ColumnBinding("image", "x", decode)
    data = InputRef(str(tmp_path / "images.parquet"), InputFormat.PARQUET, columns=(binding,))
    return replace(spec, model=replace(spec.model, uri=f"file://{tmp_path}/grey.onnx", sha256=sha256), input=data)


def able(device: FakeDevice) -> FakeDevice:
    device.identity = replace(device.identity, features=frozenset(AgentFeature))
    return device


async def test_an_older_agent_is_passed_over_and_a_newer_one_gets_the_work(tmp_path) -> None:
    async with an_engine(tmp_path) as engine:
        old = FakeDevice(engine, "old")
        old.attach()
        spec = image_job(tmp_path, SCALED)
        engine.submit(spec)
        await until(engine, lambda: (v := engine.job_view(spec.uid)) is not None and v.obstacle is not None
                    and "AffineInputs" in v.obstacle.message)  # fmt: skip
        obstacle = view_of(engine, spec).obstacle
        assert obstacle is not None
        assert obstacle.reason == "NoReadyNodes"
        assert "1 agent too old for AffineInputs: update it" in obstacle.message
        assert old.orders == {}
        new = able(FakeDevice(engine, "new"))
        new.attach()
        await job_reaches(engine, spec, Stage.COMPLETE)
        assert old.orders == {}
        assert old.computed == []
        await old.stop()
        await new.stop()


async def test_an_agent_that_was_updated_under_the_same_name_gets_the_work(tmp_path) -> None:
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "phone")
        device.attach()
        spec = image_job(tmp_path, SCALED)
        engine.submit(spec)
        await until(engine, lambda: (v := engine.job_view(spec.uid)) is not None and v.obstacle is not None
                    and "AffineInputs" in v.obstacle.message)  # fmt: skip
        await device.vanish(forget=True)
        able(device).attach()
        await job_reaches(engine, spec, Stage.COMPLETE)
        await device.stop()


async def test_work_without_arithmetic_goes_to_any_agent(tmp_path) -> None:
    async with an_engine(tmp_path) as engine:
        old = FakeDevice(engine, "old")
        old.attach()
        spec = image_job(tmp_path, replace(SCALED, scale=1.0))
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
        await old.stop()


async def test_what_is_asked_of_an_agent_reaches_it_whole(tmp_path) -> None:
    """From the manifest's words to the agent's, over the wire's."""
    from pocketgrid.engine.admission import admit
    from pocketgrid.storage.modelstore import ModelStore

    decode = replace(SCALED, scale=0.00392156862745098, mean=(0.485,), std=(0.229,))
    admission = admit(image_job(tmp_path, decode), ModelStore(tmp_path / "models"))
    admission.encoder.close()
    sent = pb.WorkOrder.FromString(write_order(admission.job.order).SerializeToString())
    assert list(sent.requires) == [pb.FEATURE_AFFINE_INPUTS]
    (binding,) = codec.order_of(sent).bindings
    assert binding.affine is not None
    numbers = (*binding.affine.scale, *binding.affine.mean, *binding.affine.std)
    assert numbers == pytest.approx((0.00392156862745098, 0.485, 0.229), rel=1e-7)
    assert [np.float32(n) for n in numbers] == [np.float32(n) for n in (0.00392156862745098, 0.485, 0.229)]
    assert binding.item_shape == (1, 4)


def test_what_an_agent_can_do_is_read_and_what_it_says_beyond_is_passed_over() -> None:
    hello = pb.Hello(device_name="phone", boot_id="b", facts=pb.DeviceFacts(kind="phone"), features=codec.FEATURES)
    hello.features.append(4711)
    identity, _ = read_hello(hello)
    assert identity.features == frozenset(AgentFeature)
    assert read_hello(pb.Hello(device_name="old"))[0].features == frozenset()

"""What do thousands of connected devices cost one operator, and what happens when all lose it at the same moment?

The operator is the product's, without a cluster; the devices are the agent's own links without models
(`hack.bench.load`). On this machine they share the processors with the operator, which real devices would not: their
processor time is told beside each figure. A device counts as attached once a heartbeat of it was answered on its
present stream, which proves that both directions work.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hack.bench import workloads
from hack.bench.errors import BenchError
from hack.bench.figures import Definition, Figure
from hack.bench.load.crowd import Crowd, wait_for_json
from hack.bench.measurements.base import AGENTS, Conditions, Measurement, median
from hack.controlplane.child import Child
from hack.joining import enrol_agent

DEVICES, QUICK_DEVICES = 10_000, 500
PROCESSES = 2
ROWS, QUICK_ROWS = 2_000, 256
BARE_STREAM_KB = 91.0
"""An idle grpc.aio stream over TLS without anything of ours, measured for the design."""

ATTACH_DEADLINE_S = 300.0
STORM_DEADLINE_S = 240.0
JOB_DEADLINE_S = 300.0
SETTLE_S, LOOK_S = 20.0, 30.0
"""So long, devices are told their pace; then for so long, processor time is taken."""

WORKER = "example.com/worker"

MEMORY = Definition(
    name="gateway_memory_kb_per_device",
    unit="KB",
    goal=150.0,
    at_least=False,
    meaning=f"Resident memory of the operator for each of {DEVICES:,} idle devices, session and record included",
    origin="a bare stream of grpc.aio takes 91 KB",
)
IDLE = Definition(
    name="gateway_idle_cores",
    unit="cores",
    goal=0.5,
    at_least=False,
    meaning=f"Processor time of the operator with {DEVICES:,} idle devices that report every 10 s, each answered",
    origin="bare streams with as many heartbeats took 0.32 of a core",
)
ATTACH = Definition(
    name="gateway_attach_seconds",
    unit="s",
    goal=60.0,
    at_least=False,
    meaning=f"From the first dial of {DEVICES:,} devices, 128 at a time, until all are attached",
    origin="bare streams took 22 s",
)
STORM = Definition(
    name="gateway_storm_seconds",
    unit="s",
    goal=60.0,
    at_least=False,
    meaning=f"From the SIGKILL of an operator with {DEVICES:,} devices, started again at once, until all are back",
    origin="a restart should not be felt for longer than a minute",
)
AMONG_IDLE = Definition(
    name="efficiency_among_idle_devices",
    unit="ratio",
    goal=0.9,
    at_least=True,
    meaning=f"Items per second of two agents among {DEVICES:,} idle devices, over what they reach alone on the "
    "processors that the idle devices leave",
    origin="idle devices should cost a job nothing but what their heartbeats take",
)


def _run(conditions: Conditions) -> Sequence[Figure]:
    devices = QUICK_DEVICES if conditions.quick else DEVICES
    say = conditions.progress.say
    workload = workloads.embedding(conditions.folder / "rows", QUICK_ROWS if conditions.quick else ROWS)
    with Crowd(conditions.folder / "crowd", devices, PROCESSES) as crowd:
        agents = _start_agents(crowd)
        try:
            _run_job(crowd, workload, "warm-up")
            alone = _run_job(crowd, workload, "alone")
            say(f"two agents alone: {alone:.0f} items/s")
            before = crowd.operator_state()
            began = time.monotonic()
            crowd.start_devices()
            attached = crowd.until(lambda s: s["answered"] >= devices, "all attached", ATTACH_DEADLINE_S) - began
            attaching = crowd.operator_state()["cpu_s"] - before["cpu_s"]
            generating = crowd.devices_state()["cpu_s"]
            say(f"{devices:,} devices attached after {attached:.1f} s")
            memory, idle, idle_load, lag = _look_at_rest(crowd, devices, before)
            say(f"{memory:.0f} KB each, {idle:.2f} cores at rest")
            among = _run_job(crowd, workload, "among-idle")
            cores = float(len(os.sched_getaffinity(0)))
            share = among / alone / ((cores - idle_load) / cores)
            say(f"two agents among them: {among:.0f} items/s")
            storms = [_storm(conditions, crowd, devices) for _ in range(1 if conditions.quick else conditions.rounds)]
        finally:
            for agent in agents:
                agent.stop()
    return (
        Figure(MEMORY, (memory,), {"devices": float(devices), "bare_stream_kb": BARE_STREAM_KB}),
        Figure(IDLE, (idle,), {"devices": float(devices), "devices_cores": idle_load, "longest_lag_ms": 1e3 * lag}),
        Figure(ATTACH, (attached,), {"operator_cpu_seconds": attaching, "devices_cpu_seconds": generating}),
        Figure(
            STORM,
            tuple(storm["seconds"] for storm in storms),
            {
                name: median(storm[name] for storm in storms)
                for name in ("operator_cpu_seconds", "devices_cpu_seconds", "restart_seconds")
            },
        ),
        Figure(AMONG_IDLE, (share,), {"alone": alone, "among_idle": among, "devices_cores": idle_load}),
    )


def _look_at_rest(crowd: Crowd, devices: int, before: dict[str, Any]) -> tuple[float, float, float, float]:
    """KB a device, cores of the operator, cores of the devices, and the longest delay of the operator's loop."""
    time.sleep(SETTLE_S)
    operator, load = crowd.operator_state(), crowd.devices_state()
    lag, end = 0.0, time.monotonic() + LOOK_S
    while time.monotonic() < end:
        time.sleep(0.25)
        lag = max(lag, crowd.operator_state()["longest_lag_s"])
    later, load_later = crowd.operator_state(), crowd.devices_state()
    if load_later["lost"] > load["lost"]:
        raise BenchError(f"{load_later['lost'] - load['lost']:.0f} idle devices lost their streams at rest")
    seconds = later["at"] - operator["at"]
    return (
        (later["resident_bytes"] - before["resident_bytes"]) / devices / 1e3,
        (later["cpu_s"] - operator["cpu_s"]) / seconds,
        (load_later["cpu_s"] - load["cpu_s"]) / seconds,
        lag,
    )


def _storm(conditions: Conditions, crowd: Crowd, devices: int) -> dict[str, float]:
    before = crowd.devices_state()
    began = crowd.kill_operator()
    crowd.start_operator()
    restarted = time.monotonic()

    def all_are_back(state: dict[str, float]) -> bool:
        return state["lost"] >= before["lost"] + devices and state["answered"] >= devices

    over = crowd.until(all_are_back, "all are back", STORM_DEADLINE_S)
    after = crowd.devices_state()
    if after["refused"]:
        raise BenchError(f"{after['refused']:.0f} devices were refused for ever")
    conditions.progress.say(f"storm of {devices:,}: all back after {over - began:.1f} s")
    # Until they have been told over what time to spread, the next storm would be another one.
    time.sleep(SETTLE_S)
    return {
        "seconds": over - began,
        "restart_seconds": restarted - began,
        "operator_cpu_seconds": crowd.operator_state()["cpu_s"],
        "devices_cpu_seconds": after["cpu_s"] - before["cpu_s"],
    }


def _start_agents(crowd: Crowd) -> list[Child]:
    where = crowd.where()
    agents = []
    for number in range(1, AGENTS + 1):
        enrol_agent(where, crowd.folder / f"worker-{number}", f"worker-{number}")
        agent = crowd.child(
            f"worker-{number}",
            [
                "pocketgrid_agent", "--gateway", where["address"], "--name", f"worker-{number}", "--threads", "1",
                "--state-dir", str(crowd.folder / f"worker-{number}"), "--cache-dir", str(crowd.folder / "models"),
                "--label", f"{WORKER}=yes", "--micro-batch", str(workloads.EMBEDDING_MICRO_BATCH),
            ],
        )  # fmt: skip
        agents.append(agent)
        agent.start()
    return agents


def _run_job(crowd: Crowd, workload: workloads.Workload, name: str) -> float:
    """Items per second after the first commit."""
    document = workload.document(crowd.folder / f"output-{name}", name=name)
    document["spec"]["placement"] = {"nodeSelector": {WORKER: "yes"}}
    manifest = crowd.jobs / f"{name}.json"
    unfinished = manifest.with_suffix(".part")
    unfinished.write_text(json.dumps(document))
    unfinished.replace(manifest)
    done = wait_for_json(Path(manifest.with_suffix(".done")), crowd.operator, JOB_DEADLINE_S)
    if done["failed"] or done["stage"] in ("Failed", "Refused") or not done["seconds"]:
        raise BenchError(f"job {name}: {done['stage']}, {done['why']}")
    return float(done["items"] / done["seconds"])


MEASUREMENT = Measurement("connections", (MEMORY, IDLE, ATTACH, STORM, AMONG_IDLE), _run)

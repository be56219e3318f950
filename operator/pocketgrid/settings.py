"""Everything that can be tuned, in one frozen tree.

Built once in the composition root; nothing else reads the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine paces itself."""

    tick_seconds: float = 0.25
    """How often deadlines and stragglers are looked at."""

    reconnect_grace_seconds: float = 1.0
    """How long a device whose link broke keeps its leases. Long enough for a reconnect on the same network, short
    enough that a lost device's leases go out again within three seconds."""

    forget_seconds: float = 3600.0
    """How long a lost device is remembered here. What counts of it (owner, work done, speed at models) is in its
    EdgeNode, and it measures itself again when it returns."""

    lease_slack: float = 3.0
    """A lease may take this many times the expected time before its shards go elsewhere."""

    lease_minimum_seconds: float = 30.0
    """Shortest lease deadline: below it, a pause of the device's owner would look like a failure."""

    readmission_seconds: float = 15.0
    """How often a refusal that may heal by itself (a missing file, an unknown class) is looked at again."""

    model_retry_seconds: float = 60.0
    """How long a device that could not load a model is left alone with it."""

    orphan_bytes: int = 64 << 20
    """Results for jobs not known yet that are kept while the operator is still reading its jobs after a start; beyond
    it they are dropped, and devices bring them again when they next connect."""

    commit_queue_bytes: int = 64 << 20
    """Results waiting for the disk, for one job; while it is full, devices of that job are not read from."""

    encode_threads: int = 2
    """Threads that read and encode items. The work is in libraries that release the interpreter lock."""

    message_bytes: int = 896 << 10
    """Shards are read and encoded together up to about this size; they travel in messages of at most 256 KiB, or in
    fragments of that size where one shard is larger."""

    completed_text_limit: int = 8192
    """Characters of `status.completedShards`; a job's status stays far below etcd's limits whatever happens."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Where devices connect, and how soon a dead link is noticed."""

    host: str = "127.0.0.1"
    """Loopback until the platform team decides otherwise."""

    port: int = 0
    """0 picks a free one."""

    enrolment_port: int = 0
    """Where devices join, on the same host; 0 picks a free one."""

    advertised_address: str = ""
    """HOST:PORT that devices are told to dial once they have joined; empty: the host they joined at, and `port`."""

    advertised_enrolment_address: str = ""
    """HOST:PORT that people are told to let devices join at; empty: the first of `server_names`, and
    `enrolment_port`."""

    server_names: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Names and addresses the gateway's certificate is good for."""

    trust_domain: str = "pocketgrid.dev"
    """The first part of what certificates call devices, ``spiffe://<trust domain>/device/<name>``."""

    certificate_seconds: float = 86400.0
    """Life of a device's certificate; a new one is asked for after two thirds of it."""

    heartbeat_seconds: float = 2.0
    """How often devices report, unless there are too many of them."""

    silence_seconds: float = 8.0
    """A link on which nothing arrived for so long is dead: three missed heartbeats, and below ten seconds. It grows
    with the time between heartbeats."""

    heartbeats_per_second: float = 1000.0
    """What all idle devices together may send, and all working ones: a third of a core each. With more devices than
    this times `heartbeat_seconds`, each reports less often."""

    longest_heartbeat_seconds: float = 15.0
    """But no less often than this: agents allow for a minute of silence at most."""

    attaches_per_second: float = 250.0
    """How many devices are to dial in a second when all of them have to: about half of what a core can take in."""

    longest_spread_seconds: float = 300.0
    """But all are back by then: with more devices, run them on a faster machine or on several gateways."""

    hello_seconds: float = 10.0
    """How long a new stream may take to say who it is."""

    send_queue_messages: int = 4096
    """Messages waiting for one device, beyond which its link is closed: it has stopped reading."""

    receive_rate: float = 100_000.0
    receive_burst: float = 400_000.0
    """What one device may cost the gateway a second, and at once, before it is read from more slowly. A message costs
    64 and its weight (`weigh_parts`): these are about 1,300 heartbeats or 4,000 results a second."""

    assembly_bytes: int = 256 << 20
    """Unfinished messages of all devices together; who begins one waits until there is room for all of it."""

    most_sessions: int = 20_000
    """Devices attached at a time; more are told to come again."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole tree.

    Attributes:
        state_dir: certificates, the model store and copies of packed inputs; must survive a restart of the operator.
    """

    state_dir: Path
    engine: EngineSettings = field(default_factory=EngineSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)

"""What the grid knows of a device: facts it states, vitals it reports, and how Kubernetes sees its Node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pocketgrid.model.ids import DeviceName, ModelDigest
from pocketgrid.model.money import PriceList
from pocketgrid.model.selectors import LabelSelector, Taint

LABEL_PREFIX = "pocketgrid.dev/"
CLASS_LABEL = LABEL_PREFIX + "class"
"""On the Node of a device that belongs to one HardwareClass and no other, whatever it says of itself."""

DEVICE_TAINT_KEY = LABEL_PREFIX + "device"
"""Keeps Pods off the Node of a device that has no kubelet; the grid itself looks past it."""

DISTRUSTED_TAINT_KEY = LABEL_PREFIX + "distrusted"
"""On the Node of a device whose results are not believed, whoever put it there. Removing it pardons the device."""


class DeviceKind(StrEnum):
    """What sort of machine a device takes itself for."""

    PHONE = "phone"
    SBC = "sbc"
    LAPTOP = "laptop"
    DESKTOP = "desktop"
    SERVER = "server"


class AgentFeature(StrEnum):
    """What an agent can do beyond the first release of the protocol, and an older one would pass over in silence."""

    AFFINE_INPUTS = "AffineInputs"
    """Scales and shifts inputs before they meet the model."""
    SEALED_CACHE = "SealedCache"
    """Keeps a model encrypted on its disk, under a key that it has in memory only."""


class Network(StrEnum):
    """How a device reaches us, as far as it can tell."""

    UNKNOWN = "unknown"
    ETHERNET = "ethernet"
    WIFI = "wifi"
    CELLULAR = "cellular"
    LOOPBACK = "loopback"


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device says of itself when it attaches; fixed for the life of its process.

    Attributes:
        arch: as Kubernetes writes it: amd64, arm64, arm.
        os: as Kubernetes writes it: linux, android.
        simd: instruction set extensions that change numerics or speed, sorted.
        providers: onnxruntime execution providers.
        memory_bytes: physical memory.
        engine: inference engine and version, such as ``onnxruntime 1.32.0``.
        opset: newest default operator set the engine runs; 0 if unknown.
    """

    kind: DeviceKind
    arch: str
    os: str
    cores: int
    memory_bytes: int
    simd: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    model_name: str = ""
    agent_version: str = ""
    engine: str = ""
    opset: int = 0


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a device feels. None means it cannot tell, which is not zero."""

    load1: float | None = None
    memory_available_bytes: int | None = None
    battery_percent: float | None = None
    charging: bool | None = None
    temperature_celsius: float | None = None
    network: Network = Network.UNKNOWN


class RestraintLevel(StrEnum):
    """How far a device is held back by its owner."""

    NONE = "None"
    EASED = "Eased"
    """It works, but gently."""
    PAUSED = "Paused"
    """It wants no work now."""


@dataclass(frozen=True, slots=True)
class Restraint:
    """What a device's owner lets it do now, and unless that is everything, why: CamelCase reason and a sentence."""

    level: RestraintLevel = RestraintLevel.NONE
    reason: str = ""
    message: str = ""

    @property
    def paused(self) -> bool:
        """Whether the device wants no work."""
        return self.level is RestraintLevel.PAUSED


@dataclass(frozen=True, slots=True)
class Credits:
    """How much unanswered work a device is willing to hold.

    Attributes:
        shards: number of shards handed out and not yet answered.
        bytes: sum of their input bytes.
    """

    shards: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Who attached.

    Attributes:
        name: the device.
        boot_id: random for each start of the agent, so that a restart is told from a reconnect.
        owner: who is responsible for the device; replicas go to different owners.
        node_name: the existing Node the agent runs on, or empty if the device has no kubelet.
        slots: how many shards it computes at once.
        cached_models: digests it need not fetch.
        labels: what its owner wants on its Node; none of ours.
        features: what its agent can do.
        hardware_class: the only class it belongs to, by what it was enrolled with; empty: those its Node's labels
            match.
        network_prefix: of the address it dials from, as far as one place goes; empty: unknown.
    """

    name: DeviceName
    boot_id: str
    owner: str
    facts: DeviceFacts
    slots: int
    credits: Credits
    node_name: str = ""
    cached_models: frozenset[ModelDigest] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    features: frozenset[AgentFeature] = frozenset()
    hardware_class: str = ""
    network_prefix: str = ""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What of a Kubernetes Node bears on work: in local mode, made from the device's facts.

    Attributes:
        uid: tells it from another Node of the same name, earlier or later.
    """

    name: DeviceName
    labels: Mapping[str, str]
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    uid: str = ""

    @property
    def distrusted(self) -> bool:
        """Whether it says that nothing of its devices is to be believed."""
        return any(taint.key == DISTRUSTED_TAINT_KEY for taint in self.taints)


@dataclass(frozen=True, slots=True)
class HardwareClass:
    """A named set of nodes, written by the platform team.

    Attributes:
        price: None: nothing is paid.
        numerics: numerics class of all its devices; empty: derived from what each says of itself.
    """

    name: str
    selector: LabelSelector
    price: PriceList | None = None
    numerics: str = ""

    def includes(self, labels: Mapping[str, str]) -> bool:
        """Whether a Node with these labels belongs to it."""
        return self.selector.matches(labels) and labels.get(CLASS_LABEL, self.name) == self.name


LABEL_CHARACTERS = 63
"""A label's value may have so many, a Node's name four times as many."""


def device_labels(identity: DeviceIdentity) -> dict[str, str]:
    """Labels a device's Node gets: the well-known ones, then ours; what the agent was told to add yields."""
    facts = identity.facts
    return {
        **identity.labels,
        "kubernetes.io/arch": facts.arch,
        "kubernetes.io/os": "linux" if facts.os == "android" else facts.os,
        "kubernetes.io/hostname": identity.name[:LABEL_CHARACTERS].rstrip("-."),
        LABEL_PREFIX + "os": facts.os,
        LABEL_PREFIX + "kind": facts.kind.value,
        LABEL_PREFIX + "owner": identity.owner,
        **({CLASS_LABEL: identity.hardware_class} if identity.hardware_class else {}),
    }

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Feature(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_UNSPECIFIED: _ClassVar[Feature]
    FEATURE_AFFINE_INPUTS: _ClassVar[Feature]
    FEATURE_SEALED_CACHE: _ClassVar[Feature]

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[Operation]
    OPERATION_MEAN_POOL: _ClassVar[Operation]
    OPERATION_NORMALIZE: _ClassVar[Operation]
    OPERATION_ARGMAX: _ClassVar[Operation]
    OPERATION_BATCH_FIRST: _ClassVar[Operation]
FEATURE_UNSPECIFIED: Feature
FEATURE_AFFINE_INPUTS: Feature
FEATURE_SEALED_CACHE: Feature
OPERATION_UNSPECIFIED: Operation
OPERATION_MEAN_POOL: Operation
OPERATION_NORMALIZE: Operation
OPERATION_ARGMAX: Operation
OPERATION_BATCH_FIRST: Operation

class EnrolRequest(_message.Message):
    __slots__ = ("device_name", "certificate_request", "token", "node_name")
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    device_name: str
    certificate_request: bytes
    token: str
    node_name: str
    def __init__(self, device_name: _Optional[str] = ..., certificate_request: _Optional[bytes] = ..., token: _Optional[str] = ..., node_name: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Credentials(_message.Message):
    __slots__ = ("certificate_chain", "trust_bundle", "gateway_address", "valid_s", "renew_after_s")
    CERTIFICATE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    TRUST_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VALID_S_FIELD_NUMBER: _ClassVar[int]
    RENEW_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    certificate_chain: bytes
    trust_bundle: bytes
    gateway_address: str
    valid_s: int
    renew_after_s: int
    def __init__(self, certificate_chain: _Optional[bytes] = ..., trust_bundle: _Optional[bytes] = ..., gateway_address: _Optional[str] = ..., valid_s: _Optional[int] = ..., renew_after_s: _Optional[int] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("protocol_version",)
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ...) -> None: ...

class CheckReply(_message.Message):
    __slots__ = ("protocol_version", "unix_ms")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    unix_ms: int
    def __init__(self, protocol_version: _Optional[int] = ..., unix_ms: _Optional[int] = ...) -> None: ...

class DeviceMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "results", "returned", "model_report", "draining", "restraint", "fragment")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    MODEL_REPORT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    RESTRAINT_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    results: Results
    returned: Returned
    model_report: ModelReport
    draining: Draining
    restraint: Restraint
    fragment: Fragment
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., results: _Optional[_Union[Results, _Mapping]] = ..., returned: _Optional[_Union[Returned, _Mapping]] = ..., model_report: _Optional[_Union[ModelReport, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., restraint: _Optional[_Union[Restraint, _Mapping]] = ..., fragment: _Optional[_Union[Fragment, _Mapping]] = ...) -> None: ...

class GatewayMessage(_message.Message):
    __slots__ = ("welcome", "refusal", "work_order", "lease", "revoke", "settled", "cancel", "drain", "pulse", "fragment")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    WORK_ORDER_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    PULSE_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    refusal: Refusal
    work_order: WorkOrder
    lease: Lease
    revoke: Revoke
    settled: Settled
    cancel: Cancel
    drain: Drain
    pulse: Pulse
    fragment: Fragment
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., work_order: _Optional[_Union[WorkOrder, _Mapping]] = ..., lease: _Optional[_Union[Lease, _Mapping]] = ..., revoke: _Optional[_Union[Revoke, _Mapping]] = ..., settled: _Optional[_Union[Settled, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., pulse: _Optional[_Union[Pulse, _Mapping]] = ..., fragment: _Optional[_Union[Fragment, _Mapping]] = ...) -> None: ...

class Fragment(_message.Message):
    __slots__ = ("index", "total", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    total: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., total: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "device_name", "boot_id", "owner", "node_name", "facts", "slots", "credits", "cached_models", "held", "labels", "features", "oldest_protocol_version")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    CACHED_MODELS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    device_name: str
    boot_id: str
    owner: str
    node_name: str
    facts: DeviceFacts
    slots: int
    credits: Credits
    cached_models: _containers.RepeatedScalarFieldContainer[str]
    held: _containers.RepeatedCompositeFieldContainer[HeldAttempt]
    labels: _containers.ScalarMap[str, str]
    features: _containers.RepeatedScalarFieldContainer[Feature]
    oldest_protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ..., device_name: _Optional[str] = ..., boot_id: _Optional[str] = ..., owner: _Optional[str] = ..., node_name: _Optional[str] = ..., facts: _Optional[_Union[DeviceFacts, _Mapping]] = ..., slots: _Optional[int] = ..., credits: _Optional[_Union[Credits, _Mapping]] = ..., cached_models: _Optional[_Iterable[str]] = ..., held: _Optional[_Iterable[_Union[HeldAttempt, _Mapping]]] = ..., labels: _Optional[_Mapping[str, str]] = ..., features: _Optional[_Iterable[_Union[Feature, str]]] = ..., oldest_protocol_version: _Optional[int] = ...) -> None: ...

class DeviceFacts(_message.Message):
    __slots__ = ("kind", "arch", "os", "cores", "memory_bytes", "simd", "providers", "model_name", "agent_version", "engine", "opset")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    OS_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIMD_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    OPSET_FIELD_NUMBER: _ClassVar[int]
    kind: str
    arch: str
    os: str
    cores: int
    memory_bytes: int
    simd: _containers.RepeatedScalarFieldContainer[str]
    providers: _containers.RepeatedScalarFieldContainer[str]
    model_name: str
    agent_version: str
    engine: str
    opset: int
    def __init__(self, kind: _Optional[str] = ..., arch: _Optional[str] = ..., os: _Optional[str] = ..., cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., simd: _Optional[_Iterable[str]] = ..., providers: _Optional[_Iterable[str]] = ..., model_name: _Optional[str] = ..., agent_version: _Optional[str] = ..., engine: _Optional[str] = ..., opset: _Optional[int] = ...) -> None: ...

class Credits(_message.Message):
    __slots__ = ("shards", "bytes")
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    shards: int
    bytes: int
    def __init__(self, shards: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class HeldAttempt(_message.Message):
    __slots__ = ("job", "shard", "token", "finished")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    job: str
    shard: int
    token: bytes
    finished: bool
    def __init__(self, job: _Optional[str] = ..., shard: _Optional[int] = ..., token: _Optional[bytes] = ..., finished: bool = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol_version", "session_id", "heartbeat_interval_ms", "silence_limit_ms", "reconnect_spread_ms")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    SILENCE_LIMIT_MS_FIELD_NUMBER: _ClassVar[int]
    RECONNECT_SPREAD_MS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    session_id: str
    heartbeat_interval_ms: int
    silence_limit_ms: int
    reconnect_spread_ms: int
    def __init__(self, protocol_version: _Optional[int] = ..., session_id: _Optional[str] = ..., heartbeat_interval_ms: _Optional[int] = ..., silence_limit_ms: _Optional[int] = ..., reconnect_spread_ms: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "message", "retry", "retry_after_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    retry: bool
    retry_after_ms: int
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., retry: bool = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sequence", "load1", "memory_available_bytes", "battery_percent", "charging", "temperature_celsius", "network", "queued_shards", "running_shards", "unacknowledged_results")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LOAD1_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BATTERY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    CHARGING_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    QUEUED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_SHARDS_FIELD_NUMBER: _ClassVar[int]
    UNACKNOWLEDGED_RESULTS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    load1: float
    memory_available_bytes: int
    battery_percent: float
    charging: bool
    temperature_celsius: float
    network: str
    queued_shards: int
    running_shards: int
    unacknowledged_results: int
    def __init__(self, sequence: _Optional[int] = ..., load1: _Optional[float] = ..., memory_available_bytes: _Optional[int] = ..., battery_percent: _Optional[float] = ..., charging: bool = ..., temperature_celsius: _Optional[float] = ..., network: _Optional[str] = ..., queued_shards: _Optional[int] = ..., running_shards: _Optional[int] = ..., unacknowledged_results: _Optional[int] = ...) -> None: ...

class Restraint(_message.Message):
    __slots__ = ("level", "reason", "message")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEVEL_UNSPECIFIED: _ClassVar[Restraint.Level]
        LEVEL_NONE: _ClassVar[Restraint.Level]
        LEVEL_EASED: _ClassVar[Restraint.Level]
        LEVEL_PAUSED: _ClassVar[Restraint.Level]
    LEVEL_UNSPECIFIED: Restraint.Level
    LEVEL_NONE: Restraint.Level
    LEVEL_EASED: Restraint.Level
    LEVEL_PAUSED: Restraint.Level
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    level: Restraint.Level
    reason: str
    message: str
    def __init__(self, level: _Optional[_Union[Restraint.Level, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Pulse(_message.Message):
    __slots__ = ("sequence", "heartbeat_interval_ms", "silence_limit_ms", "reconnect_spread_ms")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    SILENCE_LIMIT_MS_FIELD_NUMBER: _ClassVar[int]
    RECONNECT_SPREAD_MS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    heartbeat_interval_ms: int
    silence_limit_ms: int
    reconnect_spread_ms: int
    def __init__(self, sequence: _Optional[int] = ..., heartbeat_interval_ms: _Optional[int] = ..., silence_limit_ms: _Optional[int] = ..., reconnect_spread_ms: _Optional[int] = ...) -> None: ...

class WorkOrder(_message.Message):
    __slots__ = ("job", "model_sha256", "model_bytes", "bindings", "outputs", "fixed_batch", "pad_token_id", "requires", "cache_key")
    JOB_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    BINDINGS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FIXED_BATCH_FIELD_NUMBER: _ClassVar[int]
    PAD_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_FIELD_NUMBER: _ClassVar[int]
    CACHE_KEY_FIELD_NUMBER: _ClassVar[int]
    job: str
    model_sha256: str
    model_bytes: int
    bindings: _containers.RepeatedCompositeFieldContainer[TensorBinding]
    outputs: _containers.RepeatedCompositeFieldContainer[OutputPlan]
    fixed_batch: int
    pad_token_id: int
    requires: _containers.RepeatedScalarFieldContainer[Feature]
    cache_key: bytes
    def __init__(self, job: _Optional[str] = ..., model_sha256: _Optional[str] = ..., model_bytes: _Optional[int] = ..., bindings: _Optional[_Iterable[_Union[TensorBinding, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[OutputPlan, _Mapping]]] = ..., fixed_batch: _Optional[int] = ..., pad_token_id: _Optional[int] = ..., requires: _Optional[_Iterable[_Union[Feature, str]]] = ..., cache_key: _Optional[bytes] = ...) -> None: ...

class TensorBinding(_message.Message):
    __slots__ = ("input", "source", "dtype", "affine", "item_shape")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    AFFINE_FIELD_NUMBER: _ClassVar[int]
    ITEM_SHAPE_FIELD_NUMBER: _ClassVar[int]
    input: str
    source: int
    dtype: str
    affine: Affine
    item_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, input: _Optional[str] = ..., source: _Optional[int] = ..., dtype: _Optional[str] = ..., affine: _Optional[_Union[Affine, _Mapping]] = ..., item_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Affine(_message.Message):
    __slots__ = ("axis", "scale", "mean", "std")
    AXIS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    axis: int
    scale: _containers.RepeatedScalarFieldContainer[float]
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, axis: _Optional[int] = ..., scale: _Optional[_Iterable[float]] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ...) -> None: ...

class OutputPlan(_message.Message):
    __slots__ = ("output", "operations", "ragged")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    RAGGED_FIELD_NUMBER: _ClassVar[int]
    output: str
    operations: _containers.RepeatedScalarFieldContainer[Operation]
    ragged: bool
    def __init__(self, output: _Optional[str] = ..., operations: _Optional[_Iterable[_Union[Operation, str]]] = ..., ragged: bool = ...) -> None: ...

class ModelReport(_message.Message):
    __slots__ = ("job", "model_sha256", "state", "items_per_second", "micro_batch", "fetch_ms", "load_ms", "reason", "message")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ModelReport.State]
        STATE_READY: _ClassVar[ModelReport.State]
        STATE_FAILED: _ClassVar[ModelReport.State]
    STATE_UNSPECIFIED: ModelReport.State
    STATE_READY: ModelReport.State
    STATE_FAILED: ModelReport.State
    JOB_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    FETCH_MS_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    job: str
    model_sha256: str
    state: ModelReport.State
    items_per_second: float
    micro_batch: int
    fetch_ms: int
    load_ms: int
    reason: str
    message: str
    def __init__(self, job: _Optional[str] = ..., model_sha256: _Optional[str] = ..., state: _Optional[_Union[ModelReport.State, str]] = ..., items_per_second: _Optional[float] = ..., micro_batch: _Optional[int] = ..., fetch_ms: _Optional[int] = ..., load_ms: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "job", "ttl_ms", "shards")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    job: str
    ttl_ms: int
    shards: _containers.RepeatedCompositeFieldContainer[Shard]
    def __init__(self, lease_id: _Optional[int] = ..., job: _Optional[str] = ..., ttl_ms: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("index", "token", "items", "inputs")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    index: int
    token: bytes
    items: int
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, index: _Optional[int] = ..., token: _Optional[bytes] = ..., items: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data", "row_lengths")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ROW_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    row_lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., row_lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("job", "tokens")
    JOB_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    job: str
    tokens: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, job: _Optional[str] = ..., tokens: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Returned(_message.Message):
    __slots__ = ("job", "tokens", "reason")
    JOB_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    job: str
    tokens: _containers.RepeatedScalarFieldContainer[bytes]
    reason: str
    def __init__(self, job: _Optional[str] = ..., tokens: _Optional[_Iterable[bytes]] = ..., reason: _Optional[str] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("job", "tokens")
    JOB_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    job: str
    tokens: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, job: _Optional[str] = ..., tokens: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Results(_message.Message):
    __slots__ = ("job", "results")
    JOB_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    job: str
    results: _containers.RepeatedCompositeFieldContainer[ShardResult]
    def __init__(self, job: _Optional[str] = ..., results: _Optional[_Iterable[_Union[ShardResult, _Mapping]]] = ...) -> None: ...

class ShardResult(_message.Message):
    __slots__ = ("shard", "token", "compute_us", "outputs", "failures", "failure")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    shard: int
    token: bytes
    compute_us: int
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    failures: _containers.RepeatedCompositeFieldContainer[ItemFailure]
    failure: ShardFailure
    def __init__(self, shard: _Optional[int] = ..., token: _Optional[bytes] = ..., compute_us: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[ItemFailure, _Mapping]]] = ..., failure: _Optional[_Union[ShardFailure, _Mapping]] = ...) -> None: ...

class ItemFailure(_message.Message):
    __slots__ = ("row", "reason", "message")
    ROW_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    row: int
    reason: str
    message: str
    def __init__(self, row: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ShardFailure(_message.Message):
    __slots__ = ("cause", "reason", "message")
    class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CAUSE_UNSPECIFIED: _ClassVar[ShardFailure.Cause]
        CAUSE_NODE: _ClassVar[ShardFailure.Cause]
        CAUSE_ITEMS: _ClassVar[ShardFailure.Cause]
    CAUSE_UNSPECIFIED: ShardFailure.Cause
    CAUSE_NODE: ShardFailure.Cause
    CAUSE_ITEMS: ShardFailure.Cause
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    cause: ShardFailure.Cause
    reason: str
    message: str
    def __init__(self, cause: _Optional[_Union[ShardFailure.Cause, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Settled(_message.Message):
    __slots__ = ("job", "committed", "superseded", "refused")
    JOB_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    job: str
    committed: _containers.RepeatedScalarFieldContainer[bytes]
    superseded: _containers.RepeatedScalarFieldContainer[bytes]
    refused: _containers.RepeatedCompositeFieldContainer[RefusedResult]
    def __init__(self, job: _Optional[str] = ..., committed: _Optional[_Iterable[bytes]] = ..., superseded: _Optional[_Iterable[bytes]] = ..., refused: _Optional[_Iterable[_Union[RefusedResult, _Mapping]]] = ...) -> None: ...

class RefusedResult(_message.Message):
    __slots__ = ("token", "reason", "message")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    reason: str
    message: str
    def __init__(self, token: _Optional[bytes] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class FetchModelRequest(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    offset: int
    def __init__(self, sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class ModelChunk(_message.Message):
    __slots__ = ("offset", "total_bytes", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    total_bytes: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

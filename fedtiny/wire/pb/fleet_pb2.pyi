from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("token", "csr_der", "name", "card")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_DER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    token: str
    csr_der: bytes
    name: str
    card: Card
    def __init__(self, token: _Optional[str] = ..., csr_der: _Optional[bytes] = ..., name: _Optional[str] = ..., card: _Optional[_Union[Card, _Mapping]] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("device", "certificate_pem", "authority_pem", "signer", "fleet_address", "fleet_port", "unix_s", "name")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_PEM_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    FLEET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FLEET_PORT_FIELD_NUMBER: _ClassVar[int]
    UNIX_S_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    device: int
    certificate_pem: bytes
    authority_pem: bytes
    signer: bytes
    fleet_address: str
    fleet_port: int
    unix_s: float
    name: str
    def __init__(self, device: _Optional[int] = ..., certificate_pem: _Optional[bytes] = ..., authority_pem: _Optional[bytes] = ..., signer: _Optional[bytes] = ..., fleet_address: _Optional[str] = ..., fleet_port: _Optional[int] = ..., unix_s: _Optional[float] = ..., name: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr_der",)
    CSR_DER_FIELD_NUMBER: _ClassVar[int]
    csr_der: bytes
    def __init__(self, csr_der: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate_pem", "authority_pem", "unix_s")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_PEM_FIELD_NUMBER: _ClassVar[int]
    UNIX_S_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    authority_pem: bytes
    unix_s: float
    def __init__(self, certificate_pem: _Optional[bytes] = ..., authority_pem: _Optional[bytes] = ..., unix_s: _Optional[float] = ...) -> None: ...

class Card(_message.Message):
    __slots__ = ("profile", "ram_bytes", "flash_bytes", "macs_per_s", "downlink_bps", "uplink_bps", "runtime_version", "sensors")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    RAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    FLASH_BYTES_FIELD_NUMBER: _ClassVar[int]
    MACS_PER_S_FIELD_NUMBER: _ClassVar[int]
    DOWNLINK_BPS_FIELD_NUMBER: _ClassVar[int]
    UPLINK_BPS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    SENSORS_FIELD_NUMBER: _ClassVar[int]
    profile: str
    ram_bytes: int
    flash_bytes: int
    macs_per_s: float
    downlink_bps: float
    uplink_bps: float
    runtime_version: int
    sensors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, profile: _Optional[str] = ..., ram_bytes: _Optional[int] = ..., flash_bytes: _Optional[int] = ..., macs_per_s: _Optional[float] = ..., downlink_bps: _Optional[float] = ..., uplink_bps: _Optional[float] = ..., runtime_version: _Optional[int] = ..., sensors: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckInRequest(_message.Message):
    __slots__ = ("protocol", "wait_s", "card", "agent", "counters", "gave_up", "why")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    GAVE_UP_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    wait_s: float
    card: Card
    agent: str
    counters: _containers.ScalarMap[str, float]
    gave_up: int
    why: str
    def __init__(self, protocol: _Optional[int] = ..., wait_s: _Optional[float] = ..., card: _Optional[_Union[Card, _Mapping]] = ..., agent: _Optional[str] = ..., counters: _Optional[_Mapping[str, float]] = ..., gave_up: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class CheckInReply(_message.Message):
    __slots__ = ("answer", "protocol")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    answer: Answer
    protocol: int
    def __init__(self, answer: _Optional[_Union[Answer, _Mapping]] = ..., protocol: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("work", "come_back", "dismissed")
    WORK_FIELD_NUMBER: _ClassVar[int]
    COME_BACK_FIELD_NUMBER: _ClassVar[int]
    DISMISSED_FIELD_NUMBER: _ClassVar[int]
    work: Work
    come_back: ComeBack
    dismissed: Dismissed
    def __init__(self, work: _Optional[_Union[Work, _Mapping]] = ..., come_back: _Optional[_Union[ComeBack, _Mapping]] = ..., dismissed: _Optional[_Union[Dismissed, _Mapping]] = ...) -> None: ...

class ComeBack(_message.Message):
    __slots__ = ("after_s", "reason")
    AFTER_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    after_s: float
    reason: str
    def __init__(self, after_s: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class Dismissed(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Work(_message.Message):
    __slots__ = ("run", "seed", "lease", "instruction", "program", "model")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    seed: int
    lease: Lease
    instruction: Instruction
    program: Manifest
    model: Manifest
    def __init__(self, run: _Optional[bytes] = ..., seed: _Optional[int] = ..., lease: _Optional[_Union[Lease, _Mapping]] = ..., instruction: _Optional[_Union[Instruction, _Mapping]] = ..., program: _Optional[_Union[Manifest, _Mapping]] = ..., model: _Optional[_Union[Manifest, _Mapping]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("id", "round", "version", "expires_in_s", "device")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    id: int
    round: int
    version: int
    expires_in_s: float
    device: int
    def __init__(self, id: _Optional[int] = ..., round: _Optional[int] = ..., version: _Optional[int] = ..., expires_in_s: _Optional[float] = ..., device: _Optional[int] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("version", "size", "digest", "signature")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    version: int
    size: int
    digest: bytes
    signature: bytes
    def __init__(self, version: _Optional[int] = ..., size: _Optional[int] = ..., digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Instruction(_message.Message):
    __slots__ = ("kind", "phases", "returns", "part", "correction", "candidates", "mask", "grow", "statistics", "sums", "control", "own", "transforms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    GROW_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    phases: _containers.RepeatedCompositeFieldContainer[Phase]
    returns: str
    part: str
    correction: bytes
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    mask: Mask
    grow: _containers.RepeatedCompositeFieldContainer[Growth]
    statistics: bytes
    sums: FeatureSums
    control: bool
    own: _containers.RepeatedCompositeFieldContainer[Phase]
    transforms: _containers.RepeatedCompositeFieldContainer[Transform]
    def __init__(self, kind: _Optional[str] = ..., phases: _Optional[_Iterable[_Union[Phase, _Mapping]]] = ..., returns: _Optional[str] = ..., part: _Optional[str] = ..., correction: _Optional[bytes] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ..., grow: _Optional[_Iterable[_Union[Growth, _Mapping]]] = ..., statistics: _Optional[bytes] = ..., sums: _Optional[_Union[FeatureSums, _Mapping]] = ..., control: bool = ..., own: _Optional[_Iterable[_Union[Phase, _Mapping]]] = ..., transforms: _Optional[_Iterable[_Union[Transform, _Mapping]]] = ...) -> None: ...

class FeatureSums(_message.Message):
    __slots__ = ("head", "form")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    head: str
    form: str
    def __init__(self, head: _Optional[str] = ..., form: _Optional[str] = ...) -> None: ...

class Transform(_message.Message):
    __slots__ = ("name", "figure")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIGURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    figure: float
    def __init__(self, name: _Optional[str] = ..., figure: _Optional[float] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("density", "digest")
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    density: float
    digest: bytes
    def __init__(self, density: _Optional[float] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Growth(_message.Message):
    __slots__ = ("parameter", "most")
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    parameter: str
    most: int
    def __init__(self, parameter: _Optional[str] = ..., most: _Optional[int] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("seed", "digest")
    SEED_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    seed: int
    digest: bytes
    def __init__(self, seed: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Phase(_message.Message):
    __slots__ = ("lr", "steps", "part", "groups", "shuffle", "sgd", "corrected", "ahead")
    LR_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_FIELD_NUMBER: _ClassVar[int]
    SGD_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    lr: float
    steps: int
    part: str
    groups: _containers.RepeatedScalarFieldContainer[str]
    shuffle: bool
    sgd: Sgd
    corrected: bool
    ahead: float
    def __init__(self, lr: _Optional[float] = ..., steps: _Optional[int] = ..., part: _Optional[str] = ..., groups: _Optional[_Iterable[str]] = ..., shuffle: bool = ..., sgd: _Optional[_Union[Sgd, _Mapping]] = ..., corrected: bool = ..., ahead: _Optional[float] = ...) -> None: ...

class Sgd(_message.Message):
    __slots__ = ("momentum", "weight_decay", "clip", "prox", "correction", "gradient")
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    PROX_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    momentum: float
    weight_decay: float
    clip: float
    prox: float
    correction: bool
    gradient: bool
    def __init__(self, momentum: _Optional[float] = ..., weight_decay: _Optional[float] = ..., clip: _Optional[float] = ..., prox: _Optional[float] = ..., correction: bool = ..., gradient: bool = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("digest", "offset", "have")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    have: bytes
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., have: _Optional[bytes] = ...) -> None: ...

class FetchReply(_message.Message):
    __slots__ = ("chunk", "total", "is_delta")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    IS_DELTA_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    total: int
    is_delta: bool
    def __init__(self, chunk: _Optional[bytes] = ..., total: _Optional[int] = ..., is_delta: bool = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("update", "chunk", "offset", "total", "wait_s")
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    update: Update
    chunk: bytes
    offset: int
    total: int
    wait_s: float
    def __init__(self, update: _Optional[_Union[Update, _Mapping]] = ..., chunk: _Optional[bytes] = ..., offset: _Optional[int] = ..., total: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("run", "lease", "device", "version", "samples", "base", "measures")
    class MeasuresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    lease: int
    device: int
    version: int
    samples: int
    base: bytes
    measures: _containers.ScalarMap[str, float]
    def __init__(self, run: _Optional[bytes] = ..., lease: _Optional[int] = ..., device: _Optional[int] = ..., version: _Optional[int] = ..., samples: _Optional[int] = ..., base: _Optional[bytes] = ..., measures: _Optional[_Mapping[str, float]] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("receipt", "received", "answer")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    received: int
    answer: Answer
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ..., received: _Optional[int] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("lease", "status", "detail")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    lease: int
    status: str
    detail: str
    def __init__(self, lease: _Optional[int] = ..., status: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

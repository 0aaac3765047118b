from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Vector(_message.Message):
    __slots__ = ("size", "edges", "float32", "sparse", "int8", "sign", "grid", "given_mask", "own_mask")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    FLOAT32_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    INT8_FIELD_NUMBER: _ClassVar[int]
    SIGN_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    GIVEN_MASK_FIELD_NUMBER: _ClassVar[int]
    OWN_MASK_FIELD_NUMBER: _ClassVar[int]
    size: int
    edges: _containers.RepeatedScalarFieldContainer[int]
    float32: bytes
    sparse: Sparse
    int8: Int8
    sign: Sign
    grid: Grid
    given_mask: bytes
    own_mask: bytes
    def __init__(self, size: _Optional[int] = ..., edges: _Optional[_Iterable[int]] = ..., float32: _Optional[bytes] = ..., sparse: _Optional[_Union[Sparse, _Mapping]] = ..., int8: _Optional[_Union[Int8, _Mapping]] = ..., sign: _Optional[_Union[Sign, _Mapping]] = ..., grid: _Optional[_Union[Grid, _Mapping]] = ..., given_mask: _Optional[bytes] = ..., own_mask: _Optional[bytes] = ...) -> None: ...

class Sparse(_message.Message):
    __slots__ = ("places", "float32", "int8", "sign")
    PLACES_FIELD_NUMBER: _ClassVar[int]
    FLOAT32_FIELD_NUMBER: _ClassVar[int]
    INT8_FIELD_NUMBER: _ClassVar[int]
    SIGN_FIELD_NUMBER: _ClassVar[int]
    places: bytes
    float32: bytes
    int8: Int8
    sign: Sign
    def __init__(self, places: _Optional[bytes] = ..., float32: _Optional[bytes] = ..., int8: _Optional[_Union[Int8, _Mapping]] = ..., sign: _Optional[_Union[Sign, _Mapping]] = ...) -> None: ...

class Int8(_message.Message):
    __slots__ = ("block", "scales", "q")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    Q_FIELD_NUMBER: _ClassVar[int]
    block: int
    scales: bytes
    q: bytes
    def __init__(self, block: _Optional[int] = ..., scales: _Optional[bytes] = ..., q: _Optional[bytes] = ...) -> None: ...

class Grid(_message.Message):
    __slots__ = ("q", "float32")
    Q_FIELD_NUMBER: _ClassVar[int]
    FLOAT32_FIELD_NUMBER: _ClassVar[int]
    q: bytes
    float32: bytes
    def __init__(self, q: _Optional[bytes] = ..., float32: _Optional[bytes] = ...) -> None: ...

class Sign(_message.Message):
    __slots__ = ("block", "scales", "q")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    Q_FIELD_NUMBER: _ClassVar[int]
    block: int
    scales: bytes
    q: bytes
    def __init__(self, block: _Optional[int] = ..., scales: _Optional[bytes] = ..., q: _Optional[bytes] = ...) -> None: ...

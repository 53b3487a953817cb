import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._errors import (
    ArgumentError as ArgumentError,
    CompileError as CompileError,
    ConnectionError as ConnectionError,
    CudaError as CudaError,
    Error as Error,
    FailedRequest as FailedRequest,
    ProtocolError as ProtocolError,
    RefusedError as RefusedError,
    TimeoutError as TimeoutError,
    UnreachableError as UnreachableError,
    UnsupportedError as UnsupportedError,
)

__all__: list[str]

DEVICE_ATTRIBUTES: Mapping[str, int]
FUNCTION_ATTRIBUTES: Mapping[str, int]

_Dimensions = int | Sequence[int]

@dataclass(frozen=True)
class Info:
    name: str
    total_memory: int
    compute_capability: tuple[int, int]
    executor: str
    driver: str
    reason: str
    mediator: str

@dataclass(frozen=True)
class DeviceInfo:
    ordinal: int
    name: str
    total_memory: int
    driver_version: int
    uuid: bytes
    @property
    def compute_capability(self) -> tuple[int, int]: ...
    def attribute(self, attribute: int | str) -> int | None: ...

class _Closing:
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def close(self) -> None: ...

class Buffer(_Closing):
    device: Device
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    def __init__(self, device: Device, shape: int | Sequence[int], dtype: DTypeLike) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def address(self) -> int: ...
    def __len__(self) -> int: ...
    def copy_from(self, array: NDArray[Any] | Pinned, stream: Stream | None = None) -> Self: ...
    def copy_from_buffer(self, other: Buffer, stream: Stream | None = None) -> Self: ...
    @overload
    def copy_to(self, out: NDArray[Any], stream: Stream | None = None) -> NDArray[Any]: ...
    @overload
    def copy_to(self, out: Pinned, stream: Stream | None = None) -> Pinned: ...
    def copy_rectangle_from(
        self,
        array: NDArray[Any] | Pinned,
        shape: tuple[int, int] | None = None,
        *,
        at: tuple[int, int] = (0, 0),
        array_at: tuple[int, int] = (0, 0),
        stream: Stream | None = None,
    ) -> Self: ...
    @overload
    def copy_rectangle_to(
        self,
        out: NDArray[Any],
        shape: tuple[int, int] | None = None,
        *,
        at: tuple[int, int] = (0, 0),
        out_at: tuple[int, int] = (0, 0),
        stream: Stream | None = None,
    ) -> NDArray[Any]: ...
    @overload
    def copy_rectangle_to(
        self,
        out: Pinned,
        shape: tuple[int, int] | None = None,
        *,
        at: tuple[int, int] = (0, 0),
        out_at: tuple[int, int] = (0, 0),
        stream: Stream | None = None,
    ) -> Pinned: ...
    def to_host(self, stream: Stream | None = None) -> NDArray[Any]: ...
    def fill(self, value: Any, stream: Stream | None = None) -> Self: ...

class Pinned(_Closing):
    device: Device
    def __init__(self, device: Device, shape: int | Sequence[int], dtype: DTypeLike) -> None: ...
    @property
    def array(self) -> NDArray[Any]: ...
    @property
    def address(self) -> int: ...
    @property
    def is_page_locked(self) -> bool: ...
    def wait(self) -> Self: ...

class Function:
    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> tuple[int, ...]: ...
    def attribute(self, attribute: int | str) -> int | None: ...
    def launch(
        self,
        grid: _Dimensions,
        block: _Dimensions,
        args: Sequence[Any] = (),
        shared_bytes: int = 0,
        stream: Stream | None = None,
        *,
        cooperative: bool = False,
    ) -> None: ...
    def __getitem__(self, configuration: tuple[Any, ...]) -> Callable[..., None]: ...

class Module(_Closing):
    def function(self, name: str) -> Function: ...

class Stream(_Closing):
    def synchronize(self) -> float: ...
    def is_done(self) -> bool: ...
    def record(self, event: Event | None = None) -> Event: ...
    def wait(self, event: Event) -> None: ...

class Event(_Closing):
    def record(self, stream: Stream | None = None) -> Self: ...
    def synchronize(self) -> None: ...
    def is_done(self) -> bool: ...
    def elapsed_since(self, start: Event) -> float: ...

class Device(_Closing):
    name: str
    def __init__(
        self,
        endpoint: str | None = None,
        timeout: float | None = None,
        *,
        stall_timeout: float | None = None,
        client_name: str | None = None,
        secret_file: str | os.PathLike[str] | None = None,
        ordinal: int = 0,
    ) -> None: ...
    def lane(self) -> Device: ...
    @property
    def info(self) -> Info: ...
    @property
    def device_count(self) -> int: ...
    def attribute(self, attribute: int | str) -> int | None: ...
    def last_requests(self) -> list[int]: ...
    def memory_info(self) -> tuple[int, int]: ...
    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = ...) -> Buffer: ...
    def zeros(self, shape: int | Sequence[int], dtype: DTypeLike = ...) -> Buffer: ...
    def to_device(self, array: ArrayLike, stream: Stream | None = None) -> Buffer: ...
    def pinned(self, shape: int | Sequence[int], dtype: DTypeLike = ...) -> Pinned: ...
    def compile(
        self,
        source: str,
        *,
        name: str = "",
        capability: int | None = None,
        standard: str | None = None,
        defines: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        options: Iterable[str] = (),
        at: Literal["any", "here", "mediator"] = "any",
    ) -> Module: ...
    def load(self, image: str | bytes) -> Module: ...
    def stream(self, priority: int = 0, *, blocking: bool = False) -> Stream: ...
    def event(self, *, timing: bool = True) -> Event: ...
    def synchronize(self) -> float: ...
    def vector_add(
        self, a: ArrayLike, b: ArrayLike, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]: ...

def devices(
    endpoint: str | None = None,
    timeout: float | None = None,
    *,
    stall_timeout: float | None = None,
    client_name: str | None = None,
    secret_file: str | os.PathLike[str] | None = None,
) -> list[DeviceInfo]: ...
def vector_add(a: ArrayLike, b: ArrayLike, *, endpoint: str | None = None) -> NDArray[np.float32]: ...

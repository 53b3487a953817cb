import builtins
from dataclasses import dataclass

@dataclass(frozen=True)
class FailedRequest:
    id: int
    operation: str
    code: str | None
    cuda_result: int | None

class Error(Exception):
    advice: str
    code: str | None
    cuda_result: int | None
    retry: str | None
    requests: tuple[FailedRequest, ...]
    more_requests: int

class ArgumentError(Error, ValueError): ...
class CompileError(ArgumentError):
    log: str

class UnreachableError(Error, builtins.ConnectionError): ...
class ConnectionError(Error, builtins.ConnectionError): ...
class TimeoutError(Error, builtins.TimeoutError): ...
class RefusedError(Error): ...
class CudaError(Error): ...
class UnsupportedError(Error): ...
class ProtocolError(Error): ...

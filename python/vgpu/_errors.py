"""The exceptions, which the native part makes by `from_native`."""

import builtins
from dataclasses import dataclass


@dataclass(frozen=True)
class FailedRequest:
    """A request that failed when nobody waited for it: its `id`, as `Device.last_requests` has it, its `operation`, as
    "Launch", and why, as with an `Error`."""

    id: int
    operation: str
    code: str | None
    cuda_result: int | None


class Error(Exception):
    """Why a call failed; the text is one line of what failed.

    `advice` is one line of what can be done. `code` is the name of the status, as "E_QUOTA_MEM" of the mediator or
    "CUDA_ERROR_NOT_FOUND" of the driver; `cuda_result` the number of the latter. `retry` says whether the same call may
    succeed later: in the "same session", or in a "new session". `requests` are those that failed when nobody waited for
    them, up to 64, and `more_requests` is how many there were beside them.
    """

    requests = ()
    more_requests = 0

    def __init__(self, message, advice="", code=None, cuda_result=None, retry=None):
        super().__init__(message)
        self.advice = advice
        self.code = code
        self.cuda_result = cuda_result
        self.retry = retry


class ArgumentError(Error, ValueError):
    """An argument is wrong, or something that was closed is used."""


class CompileError(ArgumentError):
    """CUDA C++ does not compile: `log` has the compiler's messages."""

    log = ""


class UnreachableError(Error, builtins.ConnectionError):
    """No mediator can be reached."""


class ConnectionError(Error, builtins.ConnectionError):
    """The connection broke, or the session is over since an earlier error."""


class TimeoutError(Error, builtins.TimeoutError):
    """Nothing moved for as long as `stall_timeout` allows."""


class RefusedError(Error):
    """The mediator refused: `code` says why."""


class CudaError(Error):
    """The driver reported an error: `cuda_result` and `code` say which."""


class UnsupportedError(Error):
    """This session does not offer what was asked for."""


class ProtocolError(Error):
    """The mediator broke the protocol."""


_KINDS = {
    "argument": ArgumentError,
    "unreachable": UnreachableError,
    "connection": ConnectionError,
    "timeout": TimeoutError,
    "refused": RefusedError,
    "cuda": CudaError,
    "unsupported": UnsupportedError,
    "protocol": ProtocolError,
}


def from_native(text, requests, more_requests):
    kind, message, advice, code, cuda_result, retry, log = text
    if log is None:
        error = _KINDS.get(kind, Error)(message, advice, code, cuda_result, retry)
    else:
        error = CompileError(message, advice, code, cuda_result, retry)
        error.log = log
    error.requests = tuple(FailedRequest(*request) for request in requests)
    error.more_requests = more_requests
    return error


def argument(message):
    return ArgumentError(message, "correct the arguments")

"""GPU work from a Xen guest, or from anywhere, on a mediator's GPU, with NumPy arrays.

>>> with vgpu.Device() as dev:
...     x = dev.to_device(np.arange(1000, dtype=np.float32))
...     y = dev.empty(1000, np.float32)
...     dev.load(PTX).function("scale")[4, 256](y, x, 2.0, 1000)
...     print(y.to_host())
"""

import math
import operator
import os
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from . import _arguments, _native
from ._errors import (
    ArgumentError,
    CompileError,
    ConnectionError,
    CudaError,
    Error,
    FailedRequest,
    ProtocolError,
    RefusedError,
    TimeoutError,
    UnreachableError,
    UnsupportedError,
    argument,
)

__all__ = [
    "ArgumentError",
    "Buffer",
    "CompileError",
    "ConnectionError",
    "CudaError",
    "DEVICE_ATTRIBUTES",
    "Device",
    "DeviceInfo",
    "Error",
    "Event",
    "FUNCTION_ATTRIBUTES",
    "FailedRequest",
    "Function",
    "Info",
    "Module",
    "Pinned",
    "ProtocolError",
    "RefusedError",
    "Stream",
    "TimeoutError",
    "UnreachableError",
    "UnsupportedError",
    "devices",
    "vector_add",
]

#: The numbers of the attributes of devices and of kernels, by their names in `cuda.h`.
DEVICE_ATTRIBUTES = MappingProxyType(_native.DEVICE_ATTRIBUTES)
FUNCTION_ATTRIBUTES = MappingProxyType(_native.FUNCTION_ATTRIBUTES)


def _number(attribute, names, prefix):
    """The number of an attribute: itself, or that of its name, with or without the prefix."""
    if not isinstance(attribute, str):
        return attribute
    number = names.get(attribute, names.get(prefix + attribute))
    if number is None:
        raise argument(f"there is no attribute '{attribute}'")
    return number


def _device_attribute(attribute):
    return _number(attribute, DEVICE_ATTRIBUTES, "CU_DEVICE_ATTRIBUTE_")


@dataclass(frozen=True)
class DeviceInfo:
    """One of the devices that this guest may use, as `devices` lists them."""

    ordinal: int
    name: str
    total_memory: int
    driver_version: int
    uuid: bytes
    _attributes: list[int | None] = field(repr=False)

    @property
    def compute_capability(self):
        """Major and minor."""
        return (self.attribute("COMPUTE_CAPABILITY_MAJOR"), self.attribute("COMPUTE_CAPABILITY_MINOR"))

    def attribute(self, attribute):
        """As `Device.attribute`."""
        number = _device_attribute(attribute)
        return self._attributes[number] if 0 <= number < len(self._attributes) else None


@dataclass(frozen=True)
class Info:
    """What does not change about a session's device, and who has it."""

    name: str
    total_memory: int
    compute_capability: tuple[int, int]
    executor: str
    driver: str
    reason: str
    mediator: str


def _bytes_of(array):
    """The bytes of an array in one piece, as an array that shares its memory."""
    return array.reshape(-1).view(np.uint8)


def _plain(dtype):
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise argument(f"arrays of {dtype} hold Python's objects, which no device has")
    return dtype


def _part(array, shape, at):
    return array[at[0] : at[0] + shape[0], at[1] : at[1] + shape[1]]


def _shape(shape):
    try:
        shape = (operator.index(shape),)
    except TypeError:
        shape = tuple(operator.index(n) for n in shape)
    if any(n < 0 for n in shape):
        raise argument(f"a shape of {shape}")
    return shape


def _place(place):
    row, column = (operator.index(n) for n in place)
    if row < 0 or column < 0:
        raise argument(f"a place of {(row, column)}")
    return row, column


def _stream(stream):
    return None if stream is None else stream._native


class _Closing:
    """Closed at the end of a `with`."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Buffer(_Closing):
    """An array on a device. It is freed by `close`, at the end of a `with`, or when nobody has it any more."""

    def __init__(self, device, shape, dtype):
        self.device = device
        self.shape = _shape(shape)
        self.dtype = _plain(dtype)
        self._native = device._native.allocate(self.nbytes)

    @property
    def size(self):
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self):
        """How many bytes they have."""
        return self.size * self.dtype.itemsize

    @property
    def address(self):
        """The device address of the first; 0 where there are none."""
        return self._native.address()

    def __len__(self):
        if not self.shape:
            raise TypeError("a buffer without dimensions has no length")
        return self.shape[0]

    def __repr__(self):
        return f"<vgpu.Buffer of {self.shape} {self.dtype} on {self.device.name}>"

    def _check(self, array, what):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"the {what} is a {type(array).__name__}, not a NumPy array")
        if array.dtype != self.dtype or array.shape != self.shape:
            raise argument(f"the {what} is {array.shape} {array.dtype}; the buffer is {self.shape} {self.dtype}")

    def copy_from(self, array, stream=None):
        """Copies an array of the same shape and type to the device. It has been read when this returns.

        Of `Pinned` memory nothing has: it is not to be changed before a `wait` for it.
        """
        if isinstance(array, Pinned):
            self._check(array.array, "source")
            self.device._native.copy_pinned_to_device(array._native, self._native, self.nbytes, _stream(stream))
            return self
        self._check(array, "source")
        self.device._native.copy_to_device(_bytes_of(np.ascontiguousarray(array)), self._native, _stream(stream))
        return self

    def copy_from_buffer(self, other, stream=None):
        """Copies another buffer of the same shape and type, on the device."""
        if other.dtype != self.dtype or other.shape != self.shape:
            raise argument(f"the source is {other.shape} {other.dtype}; the buffer is {self.shape} {self.dtype}")
        self.device._native.copy_on_device(other._native, self._native, self.nbytes, _stream(stream))
        return self

    def copy_to(self, out, stream=None):
        """Copies it to a C-contiguous array of the same shape and type, once the work sent before is done.

        To `Pinned` memory without waiting: that is to be used only after a `wait` for it.
        """
        if isinstance(out, Pinned):
            self._check(out.array, "destination")
            self.device._native.copy_device_to_pinned(self._native, out._native, self.nbytes, _stream(stream))
            return out
        self._check(out, "destination")
        if not out.flags.c_contiguous:
            raise argument("the destination is not C-contiguous")
        if not out.flags.writeable:
            raise argument("the destination is read-only")
        self.device._native.copy_from_device(self._native, _bytes_of(out), _stream(stream))
        return out

    def copy_rectangle_from(self, array, shape=None, *, at=(0, 0), array_at=(0, 0), stream=None):
        """Copies a rectangle of a two-dimensional array to the device; only its elements travel. `shape` is its rows and
        columns, or everything from its first element on. That is at row and column `array_at` of the array and goes to `at`.

        Of `Pinned` memory each row is a copy of its own, and has not been read when this returns.
        """
        shape, at, array_at, source = self._rectangle(array, shape, at, array_at, "source")
        place, size, stream = self._rows(self.shape, at), self._row_bytes(shape), _stream(stream)
        if isinstance(array, Pinned):
            from_place = self._rows(source.shape, array_at)
            self.device._native.copy_rows_pinned_to_device(array._native, from_place, self._native, place, size, stream)
            return self
        rows = np.ascontiguousarray(_part(source, shape, array_at))
        self.device._native.copy_rows_to_device(_bytes_of(rows), self._native, place, size, stream)
        return self

    def copy_rectangle_to(self, out, shape=None, *, at=(0, 0), out_at=(0, 0), stream=None):
        """Copies a rectangle to a two-dimensional array, once the work sent before is done; nothing else there changes.
        `shape` is its rows and columns, or everything that there is of `out` from its first element on. That is at row and
        column `at` and goes to `out_at`.

        To `Pinned` memory without waiting, each row as a copy of its own: that is to be used only after a `wait` for it.
        """
        shape, at, out_at, target = self._rectangle(out, shape, at, out_at, "destination")
        place, size, stream = self._rows(self.shape, at), self._row_bytes(shape), _stream(stream)
        if isinstance(out, Pinned):
            to_place = self._rows(target.shape, out_at)
            self.device._native.copy_rows_device_to_pinned(self._native, place, out._native, to_place, size, stream)
            return out
        if not target.flags.writeable:
            raise argument("the destination is read-only")
        rows = np.empty(shape, self.dtype)
        self.device._native.copy_rows_from_device(self._native, place, _bytes_of(rows), size, stream)
        _part(target, shape, out_at)[...] = rows
        return out

    def _rectangle(self, other, shape, at, other_at, what):
        array = other.array if isinstance(other, Pinned) else other
        if not isinstance(array, np.ndarray):
            raise TypeError(f"the {what} is a {type(array).__name__}, not a NumPy array")
        if array.dtype != self.dtype or array.ndim != 2 or len(self.shape) != 2:
            raise argument(
                f"the {what} is {array.shape} {array.dtype}; the buffer is {self.shape} {self.dtype}; "
                "a rectangle needs two dimensions of both and one type"
            )
        at, other_at = _place(at), _place(other_at)
        if shape is None:
            shape = tuple(n - start for n, start in zip(array.shape, other_at))
        shape = rows, columns = _shape(shape)
        for (row, column), whole in ((at, self.shape), (other_at, array.shape)):
            if row + rows > whole[0] or column + columns > whole[1]:
                raise argument(f"a rectangle of {shape} at {(row, column)} of {whole}")
        return shape, at, other_at, array

    def _rows(self, shape, at):
        """The first byte of a rectangle, and bytes from there to the next row."""
        pitch = shape[1] * self.dtype.itemsize
        return at[0] * pitch + at[1] * self.dtype.itemsize, pitch

    def _row_bytes(self, shape):
        return shape[1] * self.dtype.itemsize, shape[0]

    def to_host(self, stream=None):
        """A copy of it as a new array, once the work sent before is done."""
        return self.copy_to(np.empty(self.shape, self.dtype), stream)

    def fill(self, value, stream=None):
        """Sets every element to `value`."""
        element = np.array(value, dtype=self.dtype)
        if element.shape:
            raise argument("a fill takes one value")
        size = self.dtype.itemsize
        bits = element.tobytes()
        if size and bits == bits[:1] * size:
            size, bits = 1, bits[:1]
        if size in (1, 2, 4):
            count = self.nbytes // size
            self.device._native.fill(self._native, int.from_bytes(bits, "little"), size, count, _stream(stream))
            return self
        # The device fills with no larger elements.
        return self.copy_from(np.full(self.shape, element), stream)

    def close(self):
        """Frees it, once the work sent before is done."""
        self._native.free()


class Pinned(_Closing):
    """Page-locked memory of this program, as an array: the device copies from it and to it by itself, and kernels reach
    it. Over endpoints other than `local:` it is memory like any other.

    It lives as long as this, or an array over it: `array`, or a slice or view of that. `close`, or the end of a `with`,
    frees it before; while there are other arrays over it that is a `BufferError`.
    """

    def __init__(self, device, shape, dtype):
        self.device = device
        shape, dtype = _shape(shape), _plain(dtype)
        size = math.prod(shape) * dtype.itemsize
        self._native = device._native.pinned(size)
        # `frombuffer` keeps a view as long as the array lives, and the constructor of arrays does not.
        if size:
            self._array = np.frombuffer(self._native, np.uint8).view(dtype).reshape(shape)
        else:
            self._array = np.empty(shape, dtype)

    @property
    def array(self):
        """The memory. What copies or kernels use is not to be touched before a `wait`."""
        if self._array is None:
            raise argument("the page-locked memory was closed")
        return self._array

    @property
    def address(self):
        """The address of the first element for kernels; 0 where none reaches it."""
        return self._native.address()

    @property
    def is_page_locked(self):
        """Whether the device copies from it and to it by itself."""
        return self._native.is_page_locked()

    def __repr__(self):
        return f"<vgpu.Pinned {self.array.shape} {self.array.dtype} for {self.device.name}>"

    def wait(self):
        """Waits until no copy and no kernel that was sent uses it."""
        self._native.wait()
        return self

    def close(self):
        """Frees it, once what was sent before is done."""
        array, self._array = self._array, None
        del array
        self._native.free()


class Function:
    """A kernel."""

    def __init__(self, device, native, module):
        self._device = device
        self._native = native
        # As long as this is here, the module is loaded.
        self._module = module

    @property
    def name(self):
        """Its name."""
        return self._native.name

    @property
    def parameters(self):
        """Bytes of each parameter."""
        return tuple(self._native.parameters)

    def attribute(self, attribute):
        """The value of a `CUfunction_attribute`, by its number or its name, as "NUM_REGS"; `None` where there is none."""
        return self._native.attribute(_number(attribute, FUNCTION_ATTRIBUTES, "CU_FUNC_ATTRIBUTE_"))

    def launch(self, grid, block, args=(), shared_bytes=0, stream=None, *, cooperative=False):
        """Launches it, and does not wait: its failure is raised by the next copy from the device or `synchronize`.

        `grid` and `block` are a number or up to three. An argument is a buffer, `Pinned` memory, a NumPy scalar, a `ctypes` value or
        bytes, whose size is checked; or an `int` or a `float`, which is made as large as the parameter. Whether a
        parameter is an integer or a float, only the kernel knows: write 2.0, not 2, for a float. `cooperative`: all blocks run
        at once, so that they may wait for each other; a grid that the device has no room for fails with CUDA error 720.
        """
        sizes = self.parameters
        if len(args) != len(sizes):
            raise argument(f"kernel '{self.name}' has {len(sizes)} parameters, {len(args)} arguments were given")
        address = self._device._address
        arguments = [_arguments.to_bytes(k, value, size, address) for k, (value, size) in enumerate(zip(args, sizes))]
        self._device._native.launch(
            self._native,
            _arguments.dimensions("grid", grid),
            _arguments.dimensions("block", block),
            arguments,
            shared_bytes,
            _stream(stream),
            [value._native for value in args if isinstance(value, Pinned)],
            bool(cooperative),
        )

    def __getitem__(self, configuration):
        """As with numba: `kernel[grid, block](*args)`, or `kernel[grid, block, stream, shared_bytes]`."""
        if not isinstance(configuration, tuple) or not 2 <= len(configuration) <= 4:
            raise argument("kernel[grid, block], kernel[grid, block, stream] or kernel[grid, block, stream, shared_bytes]")
        grid, block, stream, shared_bytes = configuration + (None, 0)[len(configuration) - 2 :]
        return lambda *args: self.launch(grid, block, args, shared_bytes, stream)


class Module(_Closing):
    """Code on a device. It is unloaded by `close`, at the end of a `with`, or when nobody has it any more."""

    def __init__(self, device, native):
        self._device = device
        self._native = native

    def function(self, name):
        """The kernel of this name, as the image has it."""
        return Function(self._device, self._native.function(name), self)

    def close(self):
        """Unloads it, once the work sent before is done and its functions are gone."""
        self._native.unload()


class Stream(_Closing):
    """An order of work of its own, beside that of other streams."""

    def __init__(self, device, priority=0, blocking=False):
        self._device = device
        self._native = device._native.stream(priority, blocking)

    def synchronize(self):
        """Waits until everything that was sent to it is done. Returns the seconds that the device ran kernels."""
        return self._device._native.synchronize(self._native)

    def is_done(self):
        """Whether everything that was sent to it is done."""
        return self._device._native.stream_done(self._native)

    def record(self, event=None):
        """Has an event, or a new one, come when this has done what was sent to it before."""
        event = event or self._device.event()
        self._device._native.record(event._native, self._native)
        return event

    def wait(self, event):
        """Has what is sent to it from now on wait for the event."""
        self._device._native.wait(event._native, self._native)

    def close(self):
        """Destroys it, once its work is done."""
        self._native.destroy()


class Event(_Closing):
    """A point in a stream, which others can wait for."""

    def __init__(self, device, timing=True):
        self._device = device
        self._native = device._native.event(timing)

    def record(self, stream=None):
        """Has it come when the stream, or the default stream, has done what was sent to it before."""
        self._device._native.record(self._native, _stream(stream))
        return self

    def synchronize(self):
        """Waits until it has come."""
        self._native.synchronize()

    def is_done(self):
        """Whether it has come, or was never recorded."""
        return self._native.done()

    def elapsed_since(self, start):
        """Seconds on the device from `start` to this."""
        return self._native.elapsed_since(start._native)

    def close(self):
        """Destroys it."""
        self._native.destroy()


class Device(_Closing):
    """A session with a mediator, and its device.

    `endpoint` is one or several, with commas between, tried in order: "xen:", "local:/run/vgpu/vgpu.sock". Without it
    the environment's VGPU_ENDPOINT is used, or xen:. `timeout` is the seconds for each until its session is open (10),
    `stall_timeout` those for which nothing may move in a call (30). `ordinal` is the device, of those that `devices` lists,
    from 0 on.

    Its methods may be called in any thread; other threads run meanwhile, but calls with one device wait for each other.
    A thread that must not wait takes a `lane`. No session survives `os.fork`.
    """

    def __init__(
        self, endpoint=None, timeout=None, *, stall_timeout=None, client_name=None, secret_file=None, ordinal=0
    ):
        secret_file = None if secret_file is None else os.fspath(secret_file)
        self._set(_native.Device(endpoint, timeout, stall_timeout, client_name, secret_file, ordinal))

    def _set(self, native):
        self._native = native
        self.name = native.name()

    def __repr__(self):
        return f"<vgpu.Device {self.name}>"

    def _address(self, value):
        if isinstance(value, Pinned):
            if value.address == 0 and value.array.nbytes > 0:
                raise argument("no kernel reaches this page-locked memory; copy it to a buffer")
            return value.address
        return value.address if isinstance(value, Buffer) else None

    def lane(self):
        """The same device, for a thread that must not wait for calls of others. `close` ends the session for all."""
        lane = Device.__new__(Device)
        lane._set(self._native.lane())
        return lane

    @property
    def info(self):
        """What does not change about it."""
        executor, driver, reason, mediator = self._native.mediator()
        _, total = self._native.memory_info()
        capability = self._native.compute_capability()
        return Info(self.name, total, capability, executor, driver, reason, mediator)

    @property
    def device_count(self):
        """How many devices this guest may use."""
        return self._native.device_count()

    def attribute(self, attribute):
        """The value of a `CUdevice_attribute`, by its number or its name, as "WARP_SIZE"; `None` where there is none."""
        return self._native.attribute(_device_attribute(attribute))

    def last_requests(self):
        """The ids of the requests that the last call on this device or a stream of it has sent without waiting for it: a
        launch, a copy, a fill, a record or a wait for an event. One, but several for a large copy, which goes in pieces. The
        `requests` of a later `Error` name them, if it is theirs.
        """
        return self._native.last_requests()

    def memory_info(self):
        """Bytes of memory that are free, and that this session may have."""
        return self._native.memory_info()

    def empty(self, shape, dtype=np.float32):
        """An array on the device; what is in it is not said."""
        return Buffer(self, shape, dtype)

    def zeros(self, shape, dtype=np.float32):
        """An array of zeros on the device."""
        return Buffer(self, shape, dtype).fill(0)

    def to_device(self, array, stream=None):
        """A copy of an array on the device."""
        array = np.asarray(array)
        return Buffer(self, array.shape, array.dtype).copy_from(array, stream)

    def pinned(self, shape, dtype=np.float32):
        """Page-locked memory of this program; what is in it is not said."""
        return Pinned(self, shape, dtype)

    def compile(
        self, source, *, name="", capability=None, standard=None, defines=None, headers=None, options=(), at="any"
    ):
        """Loads a module from CUDA C++, compiled for this device. Kernels keep their names where they are `extern "C"`.

        `capability` is the compute capability to compile for, as 90 for 9.0, `standard` the language, as "c++17".
        `defines` are macros with their values, `headers` texts for `#include` with their names, `options` words of
        NVRTC, as "--use_fast_math". It is compiled "here", by the "mediator", or here where NVRTC is installed ("any").
        A `CompileError` has the compiler's messages in its `log`.
        """
        defines = [(macro, str(value)) for macro, value in (defines or {}).items()]
        headers = list((headers or {}).items())
        compiled = self._native.compile(source, name, capability, standard, defines, headers, list(options), at)
        return Module(self, compiled)

    def load(self, image):
        """Loads a module from PTX (a `str` or `bytes`), a cubin or a fatbin."""
        return Module(self, self._native.load(image.encode() if isinstance(image, str) else image))

    def stream(self, priority=0, *, blocking=False):
        """A new stream. Wherever a stream is taken, `None` is the default stream.

        Streams with lower numbers as `priority` come first; the nearest that the device has is taken. One that is `blocking`
        and the default stream wait for each other.
        """
        return Stream(self, priority, blocking)

    def event(self, *, timing=True):
        """A new event; without `timing` it costs the device less, and `elapsed_since` refuses it."""
        return Event(self, timing)

    def synchronize(self):
        """Waits until the device has done everything that was sent. Returns the seconds that it ran kernels."""
        return self._native.synchronize(None)

    def vector_add(self, a, b, out=None):
        """The sum of two arrays of 32-bit floats, element by element."""
        a, b = (np.ascontiguousarray(vector, dtype=np.float32) for vector in (a, b))
        if a.shape != b.shape:
            raise argument(f"the shapes are {a.shape} and {b.shape}")
        if out is None:
            out = np.empty(a.shape, np.float32)
        if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != a.shape:
            raise argument(f"the sum needs an array of float32 of shape {a.shape}")
        self._native.vector_add(a, b, out)
        return out

    def close(self):
        """Ends the session in good order, once what was sent is done; all that it has on the device is gone. If something
        failed and no call has said so, that is raised here, or at the end of the `with`.
        """
        self._native.close()


def devices(endpoint=None, timeout=None, *, stall_timeout=None, client_name=None, secret_file=None):
    """The devices that this guest may use, by a session of its own; the arguments are those of `Device`."""
    secret_file = None if secret_file is None else os.fspath(secret_file)
    found = _native.devices(endpoint, timeout, stall_timeout, client_name, secret_file)
    return [DeviceInfo(ordinal, *device) for ordinal, device in enumerate(found)]


def vector_add(a, b, *, endpoint=None):
    """The sum of two arrays of 32-bit floats, in a session of its own."""
    with Device(endpoint) as device:
        return device.vector_add(a, b)

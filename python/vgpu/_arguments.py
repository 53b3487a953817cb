"""Arguments of kernels: their bytes, for parameters of which only the size is known."""

import ctypes
import struct

import numpy as np

from ._errors import argument

_FLOATS = {2: "<e", 4: "<f", 8: "<d"}


def dimensions(name, value):
    """A number, or up to three, as x, y, z."""
    numbers = (value,) if isinstance(value, (int, np.integer)) else tuple(value)
    if not 1 <= len(numbers) <= 3 or not all(isinstance(n, (int, np.integer)) and 0 < n < 2**32 for n in numbers):
        raise argument(f"{name} is {value!r}; it is one to three numbers from 1 on")
    return tuple(int(n) for n in numbers) + (1,) * (3 - len(numbers))


def to_bytes(k, value, size, address):
    """The bytes of argument `k`, for a parameter of `size` bytes; `address` gives that of a buffer, or `None`."""
    place = address(value)
    if place is not None:
        data = place.to_bytes(8, "little")
    elif isinstance(value, (np.generic, np.ndarray)):
        data = value.tobytes()
    elif isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
    elif isinstance(value, (ctypes.Structure, ctypes.Union, ctypes.Array, ctypes._SimpleCData)):
        data = bytes(value)
    elif isinstance(value, int):
        bits = 8 * size
        if not -(2 ** (bits - 1)) <= value < 2**bits:
            raise argument(f"argument {k}: {value} does not fit the {size} bytes of its parameter")
        data = (value % 2**bits).to_bytes(size, "little")
    elif isinstance(value, float):
        if size not in _FLOATS:
            raise argument(f"argument {k} is a float, and its parameter has {size} bytes")
        try:
            data = struct.pack(_FLOATS[size], value)
        except OverflowError:
            raise argument(f"argument {k}: {value} does not fit a float of {size} bytes") from None
    else:
        raise TypeError(f"argument {k} is a {type(value).__name__}; give a buffer, a number, a NumPy scalar or bytes")
    if len(data) != size:
        raise argument(f"argument {k} has {len(data)} bytes; its parameter has {size}")
    return data

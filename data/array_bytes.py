"""Converts arrays to bytes and back, also for bytes from untrusted sources.

`encode` writes .npy. `decode` reads .npy and the pickled arrays, numbers and lists of published archives. A pickle is a
small program, and even numpy's own reconstruction functions trust its arguments: `_reconstruct` allocates any shape.
So each name in a pickled array (of numpy 1 or 2) maps to a small class of this file, which keeps the raw bytes and lets
`np.frombuffer` check them. Any other name is refused before anything is called.
"""

import io
import pickle
import struct
import zipfile
import zlib
from typing import Any, ClassVar, Literal

import numpy as np

NPY_MAGIC = b"\x93NUMPY"
NUMBER_KINDS = "biuf"  # bool, int, unsigned int, float
# What `np.load` raises where an .npz is damaged, and `zipfile` for an encryption or compression that it cannot undo.
NPZ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RuntimeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


def encode(array: np.ndarray) -> bytes:
    """An array of numbers as the bytes of an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """The array in .npy bytes, or in a pickle of an array, a number, or a flat list or tuple of numbers.

    Returns:
        a bool, int or float array in native byte order; a single number gives shape [].

    Raises:
        ValueError: the bytes hold anything else. No code of a pickle is ever executed.
    """
    try:
        if data.startswith(NPY_MAGIC):
            array = _read_npy(data)
        else:
            array = _as_array(_ArrayUnpickler(io.BytesIO(data)).load())
    except Exception as error:  # damaged bytes can fail at any point of parsing, with any exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]  # it may quote the damaged bytes
        raise ValueError(f"neither an .npy array nor a pickled one ({reason})") from error
    if array.dtype.kind not in NUMBER_KINDS:
        raise ValueError(f"holds {array.dtype} values; numbers are expected")
    return array.astype(array.dtype.newbyteorder("="))  # a copy, since the array above may not be written to


def _read_npy(data: bytes) -> np.ndarray:
    """Unlike np.load, allocates nothing for a shape that the bytes do not fill."""
    file = io.BytesIO(data)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
        np.lib.format.read_magic(file)
    ]
    shape, fortran_order, dtype = read_header(file)
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran_order else "C")


def _as_array(value: object) -> np.ndarray:
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, (list, tuple)):
        # Only flat lists: nested ones that share parts can be tiny as a pickle and endless as an array.
        return np.array([_number(item) for item in value])
    return np.array(_number(value))


def _number(value: object) -> int | float | np.number:
    if isinstance(value, _Scalar):
        return value.value
    if isinstance(value, (int, float)):
        return value
    raise pickle.UnpicklingError(f"a {type(value).__name__} is not an array, a number or a flat list of numbers")


class _Dtype:
    """Replaces numpy.dtype: called with a type code such as "f4", then given its byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in NUMBER_KINDS:
            raise pickle.UnpicklingError(f"an array of {code!r} values; numbers are expected")

    def __setstate__(self, state: tuple):
        byte_order = state[1]
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Replaces numpy's _reconstruct: called with nothing of interest, then given shape, type and bytes."""

    array: np.ndarray = np.zeros(0, np.int8)  # as numpy has it until the state is set

    def __init__(self, *_):
        pass

    def __setstate__(self, state: tuple):
        _version, shape, dtype, fortran_order, raw = state
        self.array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran_order else "C")


class _BufferArray(_Array):
    """Replaces numpy's _frombuffer (pickle protocol 5)."""

    def __init__(
        self, raw: bytes, dtype: _Dtype, shape: tuple, order: Literal["C", "F", "K"], axis_order: tuple | None = None
    ):
        flat = np.frombuffer(raw, dtype.dtype)
        if order == "K":
            self.array = flat.reshape(shape).transpose(axis_order)
        else:
            self.array = flat.reshape(shape, order=order)


class _Scalar:
    """Replaces numpy's scalar, a single number with a dtype."""

    def __init__(self, dtype: _Dtype, raw: bytes):
        (self.value,) = np.frombuffer(raw, dtype.dtype)


class _Latin1(bytes):
    """Replaces _codecs.encode, through which pickle protocols 0 to 2 carry bytes."""

    def __new__(cls, text: str, encoding: str):
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"text encoding {encoding!r}")
        return super().__new__(cls, text.encode("latin1"))


class _NoBytes(bytes):
    """Replaces bytes called without arguments, which is how those protocols carry empty bytes."""

    def __new__(cls):
        return super().__new__(cls)


_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin1,
    ("__builtin__", "bytes"): _NoBytes,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _Scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _BufferArray


class _ArrayUnpickler(pickle._Unpickler):
    """Accepts the names of `_STAND_INS` and no others.

    Based on the Python implementation of pickle: in the C one, a single damaged byte can allocate gigabytes of memo.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return _STAND_INS[module, name]

    def load_build(self):
        """Only instances accept state: setting it on a class would change all later arrays."""
        if not isinstance(self.stack[-2], (_Dtype, _Array)):
            raise pickle.UnpicklingError("state for something that is not an array")
        super().load_build()

    def load_bytearray8(self):
        """As inherited, but without allocating the claimed length before reading it."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

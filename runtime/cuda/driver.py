"""The CUDA driver through ctypes: load machine code, describe tensors to TMA, launch.

Only functions of the driver's stable interface are used, so a kernel that was compiled elsewhere runs here without a
compiler, and a launch costs a few microseconds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from functools import lru_cache
from typing import Any

from planner.codegen.spec.dtypes import Dtype
from planner.errors import DriverFailed

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_L2_PROMOTION_128B = 2
TENSOR_MAP_BYTES = 128


@lru_cache(maxsize=1)
def _library() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverFailed("load the CUDA driver", str(error)) from None


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(code, ctypes.byref(text))
        raise DriverFailed(what, f"error {code}: {(text.value or b'').decode()}")


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


class Function:
    """A kernel in the current device's context, ready to launch. Raises DriverFailed.

    waits: whether it waits itself for what comes before it on its stream, and may be started beside that.
    """

    def __init__(self, code: bytes, symbol: str, warps: int, shared: int, waits: bool) -> None:
        library = _library()
        self._module, self._function = c_void_p(), c_void_p()
        _check(library.cuModuleLoadData(ctypes.byref(self._module), code), f"load {symbol}")
        _check(
            library.cuModuleGetFunction(ctypes.byref(self._function), self._module, symbol.encode()), f"find {symbol}"
        )
        if shared > 48 * 1024:
            _check(
                library.cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED, shared),
                f"give {symbol} {shared} bytes of shared memory",
            )
        self._threads, self._shared, self._launch = 32 * warps, shared, library.cuLaunchKernelEx
        attributes = [_Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)] if waits else []
        self._attributes = (_Attribute * len(attributes))(*attributes)
        self.symbol = symbol

    def launcher(self, programs: int, stream: int, parameters: Any) -> Callable[[], None]:
        """Return a function that launches the kernel on a stream; parameters: a ctypes array of pointers to values."""
        launch, function = self._launch, self._function
        size, threads = (programs, 1, 1), (self._threads, 1, 1)
        config = _Config(size, threads, self._shared, stream, self._attributes, len(self._attributes))
        place = ctypes.byref(config)

        def start() -> None:
            code = launch(place, function, parameters, None)
            if code:
                _check(code, f"launch {self.symbol}")

        return start


def encode_tensor_map(
    address: int, dtype: Dtype, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int], swizzle: int
) -> Any:
    """Encode a tensor map for TMA, 128 bytes.

    sizes, strides: in elements, slow to fast; the fastest stride is 1. box: elements copied at a time. swizzle: 0 to 3
    for none, 32, 64 and 128 bytes. Elements outside the sizes read as zero and are not written. Raises DriverFailed.
    """
    rank = len(sizes)
    made = ctypes.create_string_buffer(TENSOR_MAP_BYTES + 64)
    aligned = (ctypes.addressof(made) + 63) // 64 * 64
    code = _library().cuTensorMapEncodeTiled(
        c_void_p(aligned),
        dtype.tma,
        rank,
        c_void_p(address),
        (ctypes.c_uint64 * rank)(*reversed(sizes)),
        (ctypes.c_uint64 * max(1, rank - 1))(*(stride * dtype.bytes for stride in reversed(strides[:-1]))),
        (ctypes.c_uint32 * rank)(*reversed(box)),
        (ctypes.c_uint32 * rank)(*([1] * rank)),
        0,
        swizzle,
        _L2_PROMOTION_128B,
        0,
    )
    _check(code, f"describe a tensor of sizes {tuple(sizes)}, strides {tuple(strides)} and boxes {tuple(box)}")
    return (ctypes.c_char * TENSOR_MAP_BYTES).from_address(aligned), made

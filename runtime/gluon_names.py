"""One name for what Gluon calls differently from one Triton to the next; emitted kernels import it from here.

Triton 3.6 to 3.9. The names are those of the newest.
"""

from __future__ import annotations

from typing import Any

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import tma

_gl: Any = gl
_tma: Any = tma

thread_barrier = _gl.barrier if hasattr(gl, "barrier") else _gl.thread_barrier
async_load = _tma.async_load if hasattr(tma, "async_load") else _tma.async_copy_global_to_shared
async_store = _tma.async_store if hasattr(tma, "async_store") else _tma.async_copy_shared_to_global


@builtin
def reinterpret(tiles: Any, dtype: Any, shape: Any, layout: Any, _semantic: Any = None) -> Any:
    """Shared memory as if it had been allocated with another element type, shape and layout."""
    method = tiles.reinterpret if hasattr(tiles, "reinterpret") else tiles._reinterpret
    return method(dtype, shape, layout, _semantic=_semantic)

"""One name for what Gluon calls differently from one Triton to the next; emitted kernels import it from here.

Triton 3.6 to 3.9. The names are those of the newest, but for ``thread_barrier``, now ``gl.barrier``.
"""

from __future__ import annotations

from typing import Any

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import tma

thread_barrier: Any = getattr(gl, "barrier", None) or gl.thread_barrier
async_load: Any = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
async_store: Any = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@builtin
def reinterpret(tiles: Any, dtype: Any, shape: Any, layout: Any, _semantic: Any = None) -> Any:
    """Shared memory as if it had been allocated with another element type, shape and layout."""
    method = tiles.reinterpret if hasattr(tiles, "reinterpret") else tiles._reinterpret
    return method(dtype, shape, layout, _semantic=_semantic)

"""Machine code of one kernel. Nothing here, nor in what loads and launches it, needs Triton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Binary:
    """Machine code for one architecture, and what a launch must say about it.

    warps: of a program. shared: its bytes of dynamic shared memory. parameters: the kernel's, in order, as PTX types
    them. tensor_maps: (swizzle, box) of each tensor map among the arguments.
    """

    code: bytes
    symbol: str
    warps: int
    shared: int
    parameters: tuple[str, ...]
    tensor_maps: tuple[tuple[int, tuple[int, ...]], ...]

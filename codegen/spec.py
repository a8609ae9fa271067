"""The kernel's specification: a problem and a config. Everything its source depends on, and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Self

from codegen.config import KernelConfig
from codegen.tiles import TileProgram, tile_program
from planner.errors import MalformedValue
from planner.layout import TokenLayout
from planner.pattern import Dense, Pattern, parse_pattern

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "tf32": 4}
"""Element types that kernels take, with their bytes. Float32 tensors are multiplied on tensor cores: as float32 in
three products each (relative error about 1e-6), as tf32 in one (about 5e-4).
"""

HEAD_DIMS = range(8, 257, 8)
"""Head dimensions that kernels take: a row of a head is then whole 16-byte pieces."""


@dataclass(frozen=True)
class Problem:
    """One attention site on one kind of device.

    layout, pattern: spellings. keys: length of the key sequence, which differs from the layout's only for dense
    patterns. key_mask: whether keys can be masked one by one, by a (batch, keys) boolean tensor. returns_lse: whether
    the log-sum-exp of every query is an output. arch: compute capability, 80 to 121. processors: multiprocessors.
    gated: whether the kernel looks at a noise level in device memory and does nothing on one side of a threshold.
    """

    layout: str
    pattern: str
    batch: int
    heads: int
    kv_heads: int
    keys: int
    head_dim: int
    dtype: str
    arch: int
    processors: int
    key_mask: bool = False
    returns_lse: bool = False
    gated: bool = False

    @cached_property
    def token_layout(self) -> TokenLayout:
        """The layout as a value."""
        return TokenLayout.parse(self.layout)

    @cached_property
    def parsed_pattern(self) -> Pattern:
        """The pattern as a value."""
        return parse_pattern(self.pattern)

    @property
    def queries(self) -> int:
        """Length of the query sequence."""
        return self.token_layout.tokens

    @property
    def head_block(self) -> int:
        """Channels that a tile holds: the head dimension, padded with zeros to a power of two."""
        return max(16, 1 << (self.head_dim - 1).bit_length())

    @cached_property
    def digest(self) -> str:
        """Hex digest of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def with_config(self, config: KernelConfig) -> KernelSpec:
        """The spec of a kernel for this problem."""
        return KernelSpec(**self._fields(), config=config)  # pyright: ignore[reportArgumentType]

    def verify(self) -> Self:
        """Return the value itself; raises MalformedValue, or what its layout and pattern raise."""
        self._require(self.dtype in DTYPES, f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        self._require(self.head_dim in HEAD_DIMS, f"head_dim {self.head_dim} is no multiple of 8 up to 256")
        self._require(min(self.batch, self.heads, self.kv_heads, self.keys, self.processors) >= 1, "a size is below 1")
        self._require(self.heads % self.kv_heads == 0, f"{self.heads} heads do not divide among {self.kv_heads}")
        self._require(not self.parsed_pattern.far, "kernels read no means of far groups")
        is_cross = self.keys != self.queries
        self._require(not is_cross or isinstance(self.parsed_pattern, Dense), "a pattern needs as many keys as queries")
        return self

    def _fields(self) -> dict[str, object]:
        return {each.name: getattr(self, each.name) for each in fields(Problem)}

    def _require(self, holds: bool, fault: str) -> None:
        if not holds:
            raise MalformedValue(f"kernel for {self.pattern} on {self.layout}", fault, "Give it what it can take.")


@dataclass(frozen=True)
class KernelSpec(Problem):
    """One kernel: a problem, and how it is cut up."""

    config: KernelConfig = field(kw_only=True)

    @cached_property
    def program(self) -> TileProgram:
        """What the kernel does, tile by tile."""
        config = self.config
        return tile_program(self.token_layout, self.parsed_pattern, self.keys, config.block_m, config.block_n)

    @property
    def problem(self) -> Problem:
        """What the kernel solves."""
        return Problem(**self._fields())  # pyright: ignore[reportArgumentType]

    @property
    def name(self) -> str:
        """A short name for files and profiles: what it is, and the beginning of its digest."""
        kind = self.pattern.partition("{")[0]
        return f"{kind}_{'x'.join(map(str, self.parsed_pattern.group)) or 'all'}_sm{self.arch}_{self.digest[:12]}"

"""Problems: what a kernel is asked for, one attention site on one kind of device."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Protocol, Self

from planner.codegen.spec.dtypes import Dtypes
from planner.codegen.tiling.group_means import kind_of_groups
from planner.codegen.tiling.query_tiles import QueryTiles, query_tiles
from planner.errors import MalformedValue
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout
from planner.patterns.neighborhood import Neighborhood
from planner.patterns.rules import SEPARATOR
from planner.patterns.spelling import parse_pattern

MAX_PATTERNS, SLOT_BITS = 64, 24
"""Patterns of one kernel, and bits of a table's entry that name a head; those above them name its pattern."""

HEAD_DIMS = range(8, 257, 8)
"""Head dimensions that kernels take: a row of a head is then whole 16-byte pieces."""


class Device(Protocol):
    """What a kernel runs on: a target, or a GPU at hand."""

    @property
    def arch(self) -> int:
        """Compute capability, 80 to 121."""
        ...

    @property
    def num_sms(self) -> int:
        """Multiprocessors."""
        ...


@dataclass(frozen=True)
class Problem:
    """One attention site on one kind of device.

    layout, pattern: spellings. Several patterns are separated by semicolons; a table in device memory says which of
    them a head follows. keys: length of the key sequence, which differs from the layout's only for dense patterns.
    dtype: the spelling of the tensors' element types (planner.codegen.spec.dtypes). key_mask: whether keys can be
    masked one by one, by a (batch, keys) boolean tensor. returns_lse: whether the log-sum-exp of every query is an
    output. arch: compute capability, 80 to 121. num_sms: multiprocessors. has_head_table: whether a table says which
    heads the kernel serves, and by which pattern, at the noise level that it finds in device memory. only_means:
    whether not attention is asked for but the means of the pattern's groups. scales: which of q, k and v are multiplied
    by a scale of their own, one float32 in device memory: ``kv``.
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
    num_sms: int
    key_mask: bool = False
    returns_lse: bool = False
    has_head_table: bool = False
    only_means: bool = False
    scales: str = ""

    @cached_property
    def dtypes(self) -> Dtypes:
        """The element types as values."""
        return Dtypes.parse(self.dtype)

    @cached_property
    def token_layout(self) -> TokenLayout:
        """The layout as a value."""
        return TokenLayout.parse(self.layout)

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns as values."""
        return tuple(map(parse_pattern, self.pattern.split(SEPARATOR)))

    @property
    def grouped(self) -> tuple[Pattern, ...]:
        """The patterns that are not dense."""
        return tuple(pattern for pattern in self.patterns if not isinstance(pattern, Dense))

    @cached_property
    def mean_rows(self) -> dict[str, int]:
        """How many means are read of each kind of groups; their biases lie one after the other in this order."""
        sizes = self.token_layout.grid.sizes
        return {kind_of_groups(each): math.prod(each.grid(sizes).counts) for each in self.patterns if each.pooled}

    @property
    def has_key_lists(self) -> bool:
        """Whether lists made at run time say what query groups read (planner.codegen.tiling.key_source)."""
        return self.list_words > 0

    @property
    def list_words(self) -> int:
        """Numbers of the lists of a head: of each query group how many key groups it reads at most, and one more."""
        counts = [each.grid(self.token_layout.grid.sizes).counts for each in self.grouped]
        lengths = [pattern.list_length(each) for pattern, each in zip(self.grouped, counts, strict=True)]
        return max((math.prod(each) * (1 + n) for each, n in zip(counts, lengths, strict=True) if n), default=0)

    def first_mean(self, kind: str) -> int:
        """Return where the biases of a kind of groups begin."""
        kinds = list(self.mean_rows)
        return sum(self.mean_rows[kind] for kind in kinds[: kinds.index(kind)])

    @property
    def slots(self) -> int:
        """Heads of queries in the whole batch."""
        return self.batch * self.heads

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

    @cached_property
    def means_read(self) -> dict[str, Problem]:
        """The problems of computing the means that are read, by the kind of their groups."""
        pooled = [pattern for pattern in self.patterns if pattern.pooled and not self.only_means]
        return {kind_of_groups(pattern): self._means_of(pattern) for pattern in pooled}

    def _means_of(self, pattern: Pattern) -> Problem:
        one = Neighborhood(pattern.group, (0,), "clip", offset=pattern.offset, pooled=True)
        k, v = self.dtypes.k, self.dtypes.v
        changes: dict[str, object] = {"heads": self.kv_heads, "returns_lse": False, "only_means": True, "scales": ""}
        changes["dtype"] = str(Dtypes(q=k, k=k, v=v, out=k))
        return Problem(**self.fields() | changes | {"pattern": str(one)})  # pyright: ignore[reportArgumentType]

    def query_tiles(self, block_m: int) -> tuple[QueryTiles, ...]:
        """Return the query tiles of each pattern, where a tile is of one group."""
        return query_tiles(self.token_layout, self.patterns, block_m, self.num_sms)

    def verify(self) -> Self:
        """Return the value itself; raises MalformedValue, or what its layout, pattern and dtype raise."""
        self._require(self.dtype == str(self.dtypes), f"dtype {self.dtype!r} is spelled {str(self.dtypes)!r}")
        in_order = "".join(tensor for tensor in "qkv" if tensor in self.scales)
        self._require(self.scales == in_order, f"scales {self.scales!r} are not some of q, k and v, in this order")
        self._require(self.head_dim in HEAD_DIMS, f"head_dim {self.head_dim} is no multiple of 8 up to 256")
        self._require(min(self.batch, self.heads, self.kv_heads, self.keys, self.num_sms) >= 1, "a size is below 1")
        self._require(self.heads % self.kv_heads == 0, f"{self.heads} heads do not divide among {self.kv_heads}")
        is_cross = self.keys != self.queries
        self._require(not is_cross or not self.grouped, "a pattern needs as many keys as queries")
        self._require(self.has_head_table or len(self.patterns) == 1, "no table says which head follows which pattern")
        self._require(len(self.patterns) <= MAX_PATTERNS, f"it has more than {MAX_PATTERNS} patterns")
        self._require(self.slots < 2**SLOT_BITS, f"it has more than {2**SLOT_BITS} heads")
        front_pads = {pattern.front_pad for pattern in self.grouped}
        self._require(len(front_pads) <= 1, "the first groups of its patterns lack different numbers of tokens")
        for pattern in self.grouped:
            pattern.grid(self.token_layout.grid.sizes).verify()
        return self

    def fields(self) -> dict[str, object]:
        """Return the values of the problem's own fields by their names."""
        return {each.name: getattr(self, each.name) for each in fields(Problem)}

    def _require(self, holds: bool, fault: str) -> None:
        if not holds:
            raise MalformedValue(f"kernel for {self.pattern} on {self.layout}", fault, "Give it what it can take.")


def make_problem(
    layout: str,
    pattern: str,
    device: Device,
    *,
    heads: int,
    head_dim: int,
    dtype: str,
    batch: int = 1,
    kv_heads: int = 0,
    keys: int = 0,
    key_mask: bool = False,
    returns_lse: bool = False,
    has_head_table: bool = False,
    only_means: bool = False,
    scales: str = "",
) -> Problem:
    """Make the problem that a site poses on a device; arguments are the fields of Problem.

    kv_heads, keys: as many as there are heads and tokens, where they are left out. Raises what ``Problem.verify``
    raises.
    """
    return Problem(
        layout=layout,
        pattern=pattern,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads or heads,
        keys=keys or TokenLayout.parse(layout).tokens,
        head_dim=head_dim,
        dtype=dtype,
        arch=device.arch,
        num_sms=device.num_sms,
        key_mask=key_mask,
        returns_lse=returns_lse,
        has_head_table=has_head_table,
        only_means=only_means,
        scales=scales,
    ).verify()

"""Kernel configs: tile sizes, warps and stages. They decide how fast a kernel is, never what it computes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, cast, get_args

from planner.codegen.tiling.query_tiles import pair_axis
from planner.errors import BadSpelling, NoKernel, times

if TYPE_CHECKING:
    from planner.codegen.spec.kernel_spec import Problem

Body = Literal["sm90", "pairs", "triton", "means"]
"""``sm90``: warp-specialised Gluon for Hopper. ``pairs``: the same, for groups of 64 tokens: each of its two warpgroups
has a group, and a key tile is two boxes of 64 tokens. ``triton``: one loop a region, which runs everywhere.
``means``: the means of groups, block_n tokens at a time.
"""

HOPPER = ("sm90", "pairs")
"""The bodies that run on SM90 alone."""

EXAMPLE = "triton{m=128,n=64,warps=8,stages=3}"

SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
"""Shared memory that one program may use, by compute capability (CUDA C++ Programming Guide, table 'Technical
Specifications per Compute Capability')."""


@dataclass(frozen=True)
class KernelConfig:
    """How a kernel is cut up; ``parse(str(config)) == config``.

    block_m, block_n: queries and keys of a tile. warps: of a program; in the Hopper bodies, of each of the warpgroups
    that have 64 queries. stages: tiles of keys, and of values, in flight; in the Hopper bodies of both together, and of
    an odd number values have one more.
    """

    body: Body
    block_m: int
    block_n: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.body}{{m={self.block_m},n={self.block_n},warps={self.warps},stages={self.stages}}}"

    @staticmethod
    def parse(text: str) -> KernelConfig:
        """Read a spelling; raises BadSpelling."""
        match = re.fullmatch(r"(\w+)\{m=(\d{1,4}),n=(\d{1,4}),warps=(\d{1,2}),stages=(\d{1,2})\}", text)
        if not match or match[1] not in get_args(Body):
            raise BadSpelling("kernel config", text, "it is not BODY{m=…,n=…,warps=…,stages=…}", EXAMPLE)
        return KernelConfig(cast(Body, match[1]), *(int(match[at]) for at in range(2, 6)))


MEANS = KernelConfig("means", 16, 64, 2, 1)
"""The fastest of ten tried on an H100: 3.0 TB/s at FLUX 4096² (bench/RESULTS.md, rules)."""


def why_not(config: KernelConfig, problem: Problem) -> str | None:
    """Why a kernel of this config cannot serve a problem on its target; None if it can."""
    sides = (config.block_m, config.block_n)
    if any(side & (side - 1) or not 16 <= side <= 256 for side in sides):
        return f"tiles of {config.block_m} by {config.block_n} are not powers of two between 16 and 256"
    if config.warps not in (1, 2, 4, 8, 16) or not 1 <= config.stages <= 16:
        return f"{config.warps} warps and {config.stages} stages are not possible"
    if problem.arch not in SHARED_KIB:
        return f"nothing is known of compute capability {problem.arch}"
    if problem.only_means != (config.body == "means"):
        return f"a kernel with the body {config.body} computes {'attention' if problem.only_means else 'means'}"
    reason = _why_not_sm90(config, problem) if config.body in HOPPER else _why_not_pointers(config, problem)
    needed, given = _shared_bytes(config, problem), SHARED_KIB[problem.arch] * 1024
    if reason is None and needed > given:
        return f"it needs {needed} bytes of shared memory and SM{problem.arch} has {given}"
    return reason


def candidates(problem: Problem) -> Iterator[KernelConfig]:
    """The configs worth trying for a problem on its target, the one that should be fastest first.

    The order: the Hopper bodies, four warpgroups before two, then the largest tile. A warp holds at most 64 elements of
    the output a thread, half of that where float32 is split into three products: more spill (bench/RESULTS.md, kernels
    on other targets).
    """
    if problem.only_means:
        yield MEANS
        return
    wide = problem.head_block > 64
    tokens = min((math.prod(pattern.group) for pattern in problem.grouped), default=128)
    two = [KernelConfig("sm90", 128, 128, 4, 4 if wide else 8), KernelConfig("sm90", 128, 64, 4, 8)]
    found = [KernelConfig("sm90", 256, 64, 4, 16), *two, KernelConfig("pairs", 128, 128, 4, 5 if wide else 8)]
    held = 1024 if problem.dtypes.q.products > 1 else 2048  # elements of the output that a warp holds
    rows = min(128, max(16, 1 << (tokens - 1).bit_length()))
    for block_m in (m for m in (128, 64, 32, 16) if m <= rows):
        warps = max(4, block_m * problem.head_block // held)
        for block_n, stages in itertools.product((64, 32, 16), (3, 2, 1)):
            found.append(KernelConfig("triton", block_m, block_n, warps, stages))
    yield from (config for config in found if config.warps <= 8 and why_not(config, problem) is None)


@lru_cache(maxsize=4096)
def choose_config(problem: Problem) -> KernelConfig:
    """The first of the candidates; raises NoKernel."""
    found = next(candidates(problem), None)
    if found is None:
        reason = why_not(KernelConfig("triton", 16, 16, 4, 1), problem) or "no candidate fits"
        raise NoKernel(f"{problem.pattern} on {problem.layout}", reason)
    return found


def _why_not_pointers(config: KernelConfig, problem: Problem) -> str | None:
    """Why a body that reads rows by pointers cannot serve a problem."""
    q = problem.dtypes.q
    for name, dtype in (("keys", problem.dtypes.k), ("values", problem.dtypes.v)):
        if not q.holds(dtype) and not problem.only_means:
            return f"{name} of {dtype.name} would be rounded to {q.name}, which queries are multiplied as"
    if problem.scales and problem.mean_rows:
        return "means of groups have no scales"
    return _why_not_together(config, problem)


def _why_not_together(config: KernelConfig, problem: Problem) -> str | None:
    """Why the patterns cannot have the same query tiles: a border of one's groups would cut another's."""
    groups = {pattern.group for pattern in problem.grouped}
    if len(groups) <= 1 or all(tiles.holds_whole_boxes for tiles in problem.query_tiles(config.block_m)):
        return None
    spelled = " and ".join(sorted(map(times, groups)))
    return f"groups of {spelled} are not made of the same whole boxes of {config.block_m} tokens"


def _shared_bytes(config: KernelConfig, problem: Problem) -> int:
    """Queries, keys and values in flight; the Hopper bodies hold queries twice, means hold nothing.

    At least what the compiler uses: float32, multiplied in three products, takes up to half as much again.
    """
    if problem.only_means:
        return 0
    q, k, v = problem.dtypes.q, problem.dtypes.k, problem.dtypes.v
    if config.body in HOPPER:
        channel = (config.stages * config.block_n + 2 * config.block_m) * q.bytes
    else:
        channel = config.stages * config.block_n * (k.bytes + v.bytes) + config.block_m * q.bytes
    return channel * problem.head_block * (3 if q.products > 1 else 2) // 2 + 2048


def _why_not_sm90(config: KernelConfig, problem: Problem) -> str | None:
    if problem.arch != 90:
        return f"its instructions are those of SM90, not of SM{problem.arch}"
    if not problem.dtypes.is_uniform:
        return "its queries, keys, values and output are of one type"
    if problem.dtypes.q.is_split:
        return "it multiplies bfloat16 and float16"
    if problem.scales:
        return "it takes no scales"
    if problem.head_block not in (64, 128):
        return f"heads of {problem.head_dim} channels do not make tiles of 64 or 128"
    four = config.body == "sm90" and problem.head_block == 64 and config.block_n == 64
    if config.block_m not in (128, 256 if four else 128) or config.block_n not in (64, 128) or config.warps != 4:
        return "it has tiles of 128 queries and 64 or 128 keys, or of 256 queries and 64 keys of up to 64 channels"
    if config.stages < 4:
        return "it has two tiles of keys and two of values in flight at least"
    if config.body == "pairs":
        return _why_not_paired(config, problem)
    for pattern, tiles in zip(problem.patterns, problem.query_tiles(config.block_m), strict=True):
        if not tiles.holds_whole_boxes:
            return f"groups of {times(pattern.group)} are not made of whole boxes of {config.block_m} tokens"
    return None


def _why_not_paired(config: KernelConfig, problem: Problem) -> str | None:
    if config.block_n != 128 or config.stages < 5:
        return "pairs have tiles of 128 keys, two of keys and three of values in flight at least"
    axes = {pair_axis(problem.token_layout, pattern, config.block_m) for pattern in problem.grouped}
    groups = " and ".join(sorted({times(pattern.group) for pattern in problem.grouped})) or "no tokens"
    if len(axes) != 1 or None in axes or len({pattern.group for pattern in problem.grouped}) != 1:
        return f"groups of {groups} do not make pairs of {config.block_m} tokens in one way"
    for pattern, program in zip(problem.patterns, problem.with_config(config).programs, strict=True):
        if not program.pairs_share_evenly:
            return f"two groups side by side share no tile of keys of {pattern}, or read unequal numbers alone"
    return None

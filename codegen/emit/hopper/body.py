"""The bodies of warp-specialised Gluon for Hopper: query tiles of one group, or of a pair of groups of 64 tokens."""

from __future__ import annotations

from collections.abc import Iterable

from planner.codegen.emit.hopper.emit import emit_hopper
from planner.codegen.spec.body import BODIES, KernelBody, make_spec
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.emitted import Emitted
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.problem import Problem
from planner.codegen.tiling.query_tiles import pair_axis
from planner.shapes import times


class Sm90Body(KernelBody):
    """Query tiles of one group each, which two warpgroups share, or four."""

    name, order, language, reads_lists = "sm90", 10, "gluon", True

    def why_not(self, config: KernelConfig, problem: Problem) -> str | None:
        reason = self._why_not_hopper(config, problem, block_ms=(128, 256))
        if reason is not None:
            return reason
        for pattern, tiles in zip(problem.patterns, problem.query_tiles(config.block_m), strict=True):
            if not tiles.holds_whole_boxes:
                return f"groups of {times(pattern.group)} are not made of whole boxes of {config.block_m} tokens"
        return None

    def candidates(self, problem: Problem) -> Iterable[KernelConfig]:
        """Yield four warpgroups before two, then the largest tile."""
        yield KernelConfig(self.name, 256, 64, 4, 16)
        yield KernelConfig(self.name, 128, 128, 4, 4 if problem.head_block > 64 else 8)
        yield KernelConfig(self.name, 128, 64, 4, 8)

    def emit(self, spec: KernelSpec) -> Emitted:
        return emit_hopper(spec)

    def shared_bytes(self, config: KernelConfig, problem: Problem) -> int:
        """Count the bytes of the queries of two tiles, and of the keys and values in flight."""
        rows = config.stages * config.block_n + 2 * config.block_m
        return rows * problem.head_block * problem.dtypes.q.bytes + 2048

    def _why_not_hopper(self, config: KernelConfig, problem: Problem, block_ms: tuple[int, ...]) -> str | None:
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
        has_four = problem.head_block == 64 and config.block_n == 64
        fits_m = config.block_m in block_ms and (config.block_m == 128 or has_four)
        if not fits_m or config.block_n not in (64, 128) or config.warps != 4:
            return "it has tiles of 128 queries and 64 or 128 keys, or of 256 queries and 64 keys of up to 64 channels"
        if config.stages < 4:
            return "it has two tiles of keys and two of values in flight at least"
        return None


class PairsBody(Sm90Body):
    """Query tiles of a pair of groups of 64 tokens: each of two warpgroups has one, and a key tile is two boxes."""

    name, order, paired, reads_lists = "pairs", 20, True, False

    def why_not(self, config: KernelConfig, problem: Problem) -> str | None:
        reason = self._why_not_hopper(config, problem, block_ms=(128,))
        if reason is not None:
            return reason
        if config.block_n != 128 or config.stages < 5:
            return "pairs have tiles of 128 keys, two of keys and three of values in flight at least"
        axes = {pair_axis(problem.token_layout, pattern, config.block_m) for pattern in problem.grouped}
        groups = " and ".join(sorted({times(pattern.group) for pattern in problem.grouped})) or "no tokens"
        if len(axes) != 1 or None in axes or len({pattern.group for pattern in problem.grouped}) != 1:
            return f"groups of {groups} do not make pairs of {config.block_m} tokens in one way"
        for pattern, program in zip(problem.patterns, make_spec(problem, config).programs, strict=True):
            if not program.pairs_share_evenly:
                return f"two groups side by side share no tile of keys of {pattern}, or read unequal numbers alone"
        return None

    def candidates(self, problem: Problem) -> Iterable[KernelConfig]:
        yield KernelConfig(self.name, 128, 128, 4, 5 if problem.head_block > 64 else 8)


BODIES.register(Sm90Body.name)(Sm90Body())
BODIES.register(PairsBody.name)(PairsBody())

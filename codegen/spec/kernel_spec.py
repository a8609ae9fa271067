"""The kernel's specification: a problem and a config. Everything its source depends on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.problem import Problem
from planner.codegen.tiling.group_means import kind_of_groups
from planner.codegen.tiling.program import TileProgram, tile_programs


@dataclass(frozen=True)
class KernelSpec(Problem):
    """One kernel: a problem, and how it is cut up.

    paired: whether a query tile holds a pair of groups, and a key tile a box for each (planner.codegen.tiling.program).
    """

    config: KernelConfig = field(kw_only=True)
    paired: bool = field(default=False, kw_only=True)

    @cached_property
    def programs(self) -> tuple[TileProgram, ...]:
        """What the kernel does, tile by tile, for each pattern."""
        tiles = self.config.block_m, self.config.block_n
        return tile_programs(self.token_layout, self.patterns, self.keys, *tiles, self.num_sms, self.paired)

    @property
    def program(self) -> TileProgram:
        """The first of them; query tiles and what global queries read are the same in all."""
        return self.programs[0]

    @property
    def problem(self) -> Problem:
        """What the kernel solves."""
        return Problem(**self.fields())  # pyright: ignore[reportArgumentType]

    @property
    def name(self) -> str:
        """A short name for files and profiles: what it is, and the beginning of its digest."""
        kinds = ["means" if self.only_means else str(pattern).partition("{")[0] for pattern in self.patterns]
        groups = [kind_of_groups(pattern) or "all" for pattern in self.patterns]
        several = [f"and_{len(self.patterns) - 1}"] * (len(self.patterns) > 1)
        return "_".join([kinds[0], groups[0], *several, f"sm{self.arch}", self.digest[:12]])

"""What an emitted Hopper kernel is: the facts that its templates branch on, and the words that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from planner.codegen.emit.hopper import tensor_maps
from planner.codegen.emit.kernel_source import header as header_of
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.emitted import ViewArgument
from planner.codegen.spec.head_table import HEADER
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.problem import SLOT_BITS
from planner.codegen.tiling.group_means import MeanTiles
from planner.codegen.tiling.key_source import ListedTiles
from planner.codegen.tiling.key_tiles import KeyTiles
from planner.codegen.tiling.program import TileProgram
from planner.codegen.tiling.query_tiles import SHARE
from planner.codegen.tiling.stream_k import Schedule, make_schedule

REGISTERS = {2: (240, 24), 4: (112, 112, 112, 32)}
"""Registers of a thread, by how many warpgroups multiply: in all consumer warpgroups but the first, and in producers.

The producers are one more warpgroup, of which a warp does nothing."""

COORDINATES = ("x0", "x1", "x2")
"""Names of the coordinates of a box's first token."""


@dataclass(frozen=True)
class HopperFacts:
    """The facts of one kernel; whatever is derived is computed from its spec.

    table_args, header_arg, which_arg: further arguments of functions, each after a comma. which_first, coord_args: such
    as come first. grid_tiles, work_tiles, is_global: expressions in emitted source.
    """

    spec: KernelSpec
    slot_bits: int = SLOT_BITS
    table_header: int = HEADER

    @property
    def config(self) -> KernelConfig:
        """How the kernel is cut up."""
        return self.spec.config

    @property
    def program(self) -> TileProgram:
        """The first pattern's tiles; query tiles and what global queries read are those of all patterns."""
        return self.spec.program

    @cached_property
    def schedule(self) -> Schedule:
        """Which CTA reads which keys for global queries."""
        return make_schedule(self.program, self.spec.slots, self.spec.num_sms, self.program.iterations)

    @property
    def warpgroups(self) -> int:
        """Consumer warpgroups."""
        return self.config.block_m // SHARE

    @property
    def registers(self) -> tuple[int, ...]:
        """Registers of a thread in all warpgroups but the first."""
        return REGISTERS[self.warpgroups]

    @property
    def maxnreg(self) -> int:
        """Registers of a thread at launch: as many in all as after warpgroups have got theirs."""
        return (self.registers[0] + sum(self.registers)) // (len(self.registers) + 1)

    @property
    def has_head_table(self) -> bool:
        """Whether a table in device memory says which heads follow which patterns."""
        return self.spec.has_head_table

    @property
    def has_global_rows(self) -> bool:
        """Whether there are global tokens, whose queries read everything."""
        return bool(self.program.global_runs)

    @property
    def has_fix_up(self) -> bool:
        """Whether row blocks of global queries may be added up from partials."""
        return self.has_global_rows and (self.has_head_table or self.schedule.max_partials > 1)

    @property
    def has_several(self) -> bool:
        """Whether heads may follow several patterns."""
        return len(self.spec.programs) > 1

    @property
    def is_paired(self) -> bool:
        """Whether a query tile is a pair of groups, and a key tile two boxes."""
        return self.spec.paired

    @property
    def starts_early(self) -> bool:
        """Whether a query tile's softmax starts beside the last products of the one before: there are registers."""
        return self.warpgroups == 2

    @cached_property
    def means(self) -> dict[str, MeanTiles]:
        """Means that are read, by the kind of their groups."""
        return {each.means.kind: each.means for each in self.spec.programs if each.means is not None}

    @property
    def has_means(self) -> bool:
        """Whether means of groups are keys."""
        return bool(self.means)

    @property
    def listed(self) -> ListedTiles | None:
        """The key groups that lists made at run time name."""
        return self.program.listed

    @cached_property
    def key_tiles(self) -> list[KeyTiles]:
        """All regions of tokens that are read."""
        grid = [tiles for each in self.spec.programs for tiles in each.keys]
        return grid + [self.program.everything] * self.has_global_rows

    @property
    def passes_end(self) -> bool:
        """Whether the last key tile of global queries has a box beyond all tokens."""
        program = self.program
        return self.has_global_rows and program.iterations * program.boxes > int(program.everything.count)

    @cached_property
    def hides_keys(self) -> bool:
        """Whether keys of tiles of tokens may have to be hidden from queries."""
        return self.spec.key_mask or any(any(tiles.ragged) for tiles in self.key_tiles) or self.passes_end

    @property
    def has_extents(self) -> bool:
        """Whether it is said of a box how much of it is read."""
        return self.hides_keys or self.has_means

    @cached_property
    def q_views(self) -> list[ViewArgument]:
        """Views of the queries: the grid's, then those of the runs of global tokens."""
        return tensor_maps.query_views("q", self.spec)

    @cached_property
    def o_views(self) -> list[ViewArgument]:
        """Views of the output, as those of the queries."""
        return tensor_maps.query_views("o", self.spec)

    @cached_property
    def k_views(self) -> list[ViewArgument]:
        """Views of the keys: those of tokens, then those of means."""
        return tensor_maps.key_views("k", self.key_tiles, self.means, self.spec)

    @cached_property
    def v_views(self) -> list[ViewArgument]:
        """Views of the values, as those of the keys."""
        return tensor_maps.key_views("v", self.key_tiles, self.means, self.spec)

    @property
    def views(self) -> list[ViewArgument]:
        """All views, in the order of the kernel's arguments."""
        return [*self.q_views, *self.k_views, *self.v_views, *self.o_views]

    @property
    def coords(self) -> list[str]:
        """Names of the coordinates of a query tile's group, or pair."""
        return [str(c) for c in self.program.coords]

    @property
    def box_coords(self) -> list[str]:
        """Names of the coordinates of a box of keys."""
        return list(COORDINATES[: max(len(view.box) for view in self.k_views)])

    @property
    def box_fields(self) -> list[str]:
        """Names of what says where a box of keys is: its view, the coordinates of its first token, its extent."""
        return ["view", *self.box_coords, *["extent"] * self.has_extents]

    @property
    def batch_fields(self) -> list[str]:
        """Names of what is published with a batch of key tiles."""
        return ["tiles", "head"] + ["tile"] * self.has_means + ["which"] * (self.has_several and self.has_means)

    @property
    def pattern_args(self) -> list[str]:
        """Names of what a pattern's closed forms depend on."""
        return ["which"] * self.has_several + self.coords

    @cached_property
    def readers(self) -> list[list[str]]:
        """Arguments of those who see keys: one list if all see the same, two where the groups of a pair do not."""
        mine = self.pattern_args
        if not (self.is_paired and self.has_means):
            return [mine if self.has_means else []]
        assert self.program.queries.pair_axis is not None
        axis = self.coords[self.program.queries.pair_axis]
        return [[f"2 * {name} + {wg}" if name == axis else name for name in mine] for wg in range(2)]

    @property
    def sides(self) -> range:
        """Numbers of the boxes of a key tile."""
        return range(self.program.boxes)

    @property
    def words(self) -> list[str]:
        """Names of the words with a bit for each key of a tile."""
        return [f"word{number}" for number in range(self.config.block_n // 32)]

    @property
    def first_words(self) -> list[str]:
        """Names of those of the first box, with which a query tile begins."""
        return self.words[: len(self.words) // self.program.boxes] if self.hides_keys else []

    @property
    def header(self) -> list[str]:
        """What a reader of the source should know first."""
        return header_of(self.spec)

"""What the templates of a Hopper kernel see of it: its facts, and the lines that are printed from closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from planner.codegen.emit.hopper import index_map, moves, visibility
from planner.codegen.emit.hopper.facts import HopperFacts
from planner.codegen.tiling.key_source import LIST, LISTS, list_of


@dataclass(frozen=True)
class HopperKernel(HopperFacts):
    """One kernel as its templates see it; lists of strings are lines of source that are not indented."""

    @property
    def title(self) -> str:
        """What the kernel is."""
        return f"Attention {self.spec.pattern} over {self.spec.layout}, for SM90."

    @property
    def channels(self) -> int:
        """Channels of a box of keys that TMA loads at a time."""
        return self.k_views[0].channels

    @property
    def dtype_bytes(self) -> int:
        """Bytes of an element."""
        return self.spec.dtypes.q.bytes

    @property
    def retry_limit(self) -> str:
        """The sum of weights from which a query tile is done again: below all that elements and sums have room for."""
        return f"2.0**{min(self.spec.dtypes.v.exponent, 48)}"

    @property
    def row_groups_per_head(self) -> int:
        """Row groups of a head (see ``stream_k.Schedule``)."""
        return sum(self.program.row_blocks) // self.schedule.cta_group

    @property
    def head_mask(self) -> int:
        """The bits of a head table's entry that name a head."""
        return 2**self.slot_bits - 1

    @property
    def launch_registers(self) -> tuple[int, ...]:
        """Registers of a thread in the consumers but the first, then in each of the three producers."""
        return self.registers + self.registers[-1:] * 2

    # Expressions and argument lists.

    @property
    def grid_tiles(self) -> str:
        """How many query tiles the grid has."""
        return "row_header[0] * TILES_PER_HEAD" if self.has_head_table else "GRID_TILES"

    @property
    def work_tiles(self) -> str:
        """How many work tiles the work counter hands out: query tiles of the grid, then row blocks to fix up."""
        if not self.has_head_table:
            return "WORK_TILES" if self.has_fix_up else "GRID_TILES"
        return f"row_header[0] * {'(TILES_PER_HEAD + ROW_BLOCKS_PER_HEAD)' if self.has_fix_up else 'TILES_PER_HEAD'}"

    @property
    def is_global(self) -> str:
        """Whether a work tile is a split of global queries."""
        return f"work_tile > {self.work_tiles}" if self.has_global_rows else "False"

    @property
    def table_args(self) -> str:
        """What says at run time what a work tile is: the head table's row and the numbers it begins with, key lists."""
        return ", row, row_header" * self.has_head_table + f", {LISTS}" * self.spec.has_key_lists

    @property
    def header_arg(self) -> str:
        """The numbers that the head table's row begins with."""
        return ", row_header" * self.has_head_table

    @property
    def which_arg(self) -> str:
        """The pattern's number, as a last argument."""
        return ", which" * self.has_several

    @property
    def which_first(self) -> str:
        """The pattern's number, before others."""
        return "which, " * self.has_several

    @property
    def coord_args(self) -> str:
        """The pattern's number, the group's coordinates and its list of keys, before others."""
        return "".join(f"{name}, " for name in [*self.pattern_args, *[LIST] * self.spec.has_key_lists])

    @property
    def list_of_tile(self) -> str:
        """The list of keys of a work tile's group; a split of global queries, which has none, looks at the first."""
        return f"list_of_tile({LISTS}, head, {'gl.where(is_global, 0, tile)' if self.has_global_rows else 'tile'})"

    @property
    def place_of_list(self) -> str:
        """The distance of a group's list from its head's first."""
        return "" if self.listed is None else list_of(self.program.coords, self.listed)

    @property
    def list_arg(self) -> str:
        """The list of keys of a work tile's group, as a last argument."""
        return f", {self.list_of_tile}" * self.spec.has_key_lists

    @property
    def init_args(self) -> str:
        """What ``init_softmax`` takes besides scores and constants."""
        return ", ".join(["remainder"] * self.is_paired + self.first_words + ["scale_log2"])

    @property
    def visible_takes(self) -> str:
        """What ``visible_words`` takes to know which means a group leaves out."""
        return "".join(f", {name}" for name in self.pattern_args) if self.has_means else ""

    @property
    def x_args(self) -> str:
        """The coordinates of a box of keys."""
        return ", ".join(self.box_coords)

    @property
    def buffers(self) -> str:
        """The buffers in shared memory that all warps have."""
        return "q_s, k_s, v_s, mailbox, batches, box_table" + ", visibility" * self.has_extents

    @property
    def first_keys(self) -> str:
        """What of a key tile comes first when a warpgroup begins a query tile."""
        return ".slice(wg * BOX_N, BOX_N)" if self.is_paired else ""

    @property
    def visibility_at(self) -> str:
        """The place of a warpgroup's words for the key tile of a stage."""
        return "k_at" if len(self.readers) == 1 else "(k_at * 2 + wg)"

    @property
    def word_of_column(self) -> str:
        """The word with a column's bit."""
        return visibility.WORD_OF_COLUMN[len(self.words)]

    @property
    def first_q_view(self) -> str:
        """A view whose element type is that of queries, keys and values."""
        return self.q_views[0].name

    @property
    def view_names(self) -> list[str]:
        """Names of all views, in the order of the kernel's arguments."""
        return [view.name for view in self.views]

    @property
    def view_list(self) -> str:
        """The views of keys with their numbers."""
        return ", ".join(f"{number} {view.stem}" for number, view in enumerate(self.k_views))

    def names(self, tensor: str) -> str:
        """Return the names of a tensor's views (q, k, v, o), or of keys and values alike (kv)."""
        if tensor == "kv":
            return ", ".join(view.stem for view in self.k_views)
        views = {"q": self.q_views, "k": self.k_views, "v": self.v_views, "o": self.o_views}[tensor]
        return ", ".join(view.name for view in views)

    def target(self, tensor: str) -> str:
        """Return the same as what a tuple is unpacked to."""
        names = self.names(tensor)
        return names if "," in names else f"{names},"

    # Lines.

    @cached_property
    def group_coords(self) -> list[str]:
        """Coordinates of a query tile's group, or pair."""
        return list(index_map.group_coords(self.spec.programs))

    @property
    def tiles_vary(self) -> bool:
        """Whether groups read different numbers of key tiles."""
        return any(each.tiles_read.free_symbols & {*each.coords} for each in self.spec.programs)

    @cached_property
    def tiles_read(self) -> list[str]:
        """How many key tiles a query tile reads."""
        return list(index_map.tiles_read(self.spec.programs))

    @property
    def shared_boxes_vary(self) -> bool:
        """Whether pairs share different numbers of boxes."""
        return any(each.shared_boxes.free_symbols for each in self.spec.programs)

    @cached_property
    def shared_boxes(self) -> list[str]:
        """How many boxes both groups of a pair read."""
        return list(index_map.counted([each.shared_boxes for each in self.spec.programs]))

    @cached_property
    def mean_tiles(self) -> list[str]:
        """How many key tiles hold means, and where their biases begin."""
        return list(index_map.mean_tiles(self))

    @cached_property
    def locate(self) -> list[str]:
        """Where boxes of keys are."""
        return list(index_map.locate(self))

    @cached_property
    def lies_outside(self) -> list[str]:
        """Whether a warpgroup has no queries of a tile; nothing where each always has some."""
        return list(index_map.lies_outside(self.program.queries))

    @cached_property
    def visible_words(self) -> list[str]:
        """Which keys of a box are seen."""
        return list(visibility.visible_words(self))

    def find_visibility(self, side: int) -> list[str]:
        """Return lines that find the words of one box of a key tile."""
        return list(visibility.find_visibility(self, side))

    def store_visibility(self, side: int) -> list[str]:
        """Return lines that store the words of one box of a key tile."""
        return list(visibility.store_visibility(self, side))

    @cached_property
    def load_box(self) -> list[str]:
        """Load a box of keys."""
        return list(moves.load_box(self.k_views))

    @cached_property
    def load_queries(self) -> list[str]:
        """Load a warpgroup's queries."""
        return list(moves.move_queries(self, self.q_views, load=True))

    @cached_property
    def store_output(self) -> list[str]:
        """Store a warpgroup's output."""
        return list(moves.move_queries(self, self.o_views, load=False))

    @cached_property
    def store_lse(self) -> list[str]:
        """Store the log-sum-exp of a warpgroup's rows."""
        return list(moves.store_lse(self.program))

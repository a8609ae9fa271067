"""The tensor maps of a Hopper kernel: views of tensors, and the boxes that TMA moves at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.codegen.spec.emitted import ViewArgument
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.tiling.boxes import View
from planner.codegen.tiling.group_means import MeanTiles
from planner.codegen.tiling.key_tiles import KeyTiles
from planner.codegen.tiling.query_tiles import SHARE
from planner.shapes import times


def key_views(
    letter: str, key_tiles: Sequence[KeyTiles], means: Mapping[str, MeanTiles], spec: KernelSpec
) -> list[ViewArgument]:
    """Return the views of the tokens that tiles lie in, and after them those of the means by their kind."""
    found = {(tiles.view, tiles.box): None for tiles in key_tiles}
    views = list[ViewArgument]()
    for view, box in found:
        shared = [other for seen, other in found if seen == view]
        name = "x".join(str(size) for size, _ in view.axes) if len(view.axes) > 1 else "flat"
        stem = f"tokens_{name}" + (f"_by_{times(box)}" if len(shared) > 1 else "")
        views.append(_view(letter, stem, view, box, spec))
    for kind, tiles in means.items():
        box = (tiles.block // spec.program.boxes,)
        views.append(_view(letter, f"means_{kind}", tiles.view, box, spec, f"{letter}_means_{kind}"))
    return views


def query_views(letter: str, spec: KernelSpec) -> list[ViewArgument]:
    """Return the grid's views, the whole grid first, and those of the runs of global tokens."""
    program = spec.program
    share = program.queries.share
    views = [_view(letter, _stem(spec, first), view, share, spec) for first, view in program.queries.views()]
    for number, (start, size) in enumerate(program.global_runs):
        views.append(_view(letter, f"global{number}", View(start, ((size, 1),)), (SHARE,), spec))
    return views


def _stem(spec: KernelSpec, first: Sequence[int]) -> str:
    """Name a view of the query grid; the boxes that come first along some axes have views of their own."""
    return "_first".join(["grid" if spec.program.coords else "tokens", *map(str, first)])


def _view(letter: str, stem: str, view: View, box: tuple[int, ...], spec: KernelSpec, tensor: str = "") -> ViewArgument:
    """Describe a view and its box; where two boxes make a tile, shared memory holds 64 channels of both together."""
    channels = 64 if letter in "kv" and spec.program.boxes > 1 else spec.head_block
    signature = f"tensordesc<{spec.dtypes.of(letter).triton}{[1, *box, channels]}>"
    return ViewArgument(
        f"{letter}_{stem}", signature, tensor=tensor or letter, view=view, box=box, channels=channels, stem=stem
    )

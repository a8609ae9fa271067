"""Visibility in a Hopper kernel as source: a bit for each key of a box, stored by the warp that loads keys."""

from __future__ import annotations

from collections.abc import Iterator

from planner.codegen.emit.hopper.facts import HopperFacts
from planner.codegen.emit.hopper.index_map import digits
from planner.codegen.emit.kernel_source import by_pattern, indented, reads_groups
from planner.codegen.tiling.program import TileProgram

WORD_OF_COLUMN = {
    2: "gl.where(column < 32, word0, word1)",
    4: "gl.where(column < 64, gl.where(column < 32, word0, word1), gl.where(column < 96, word2, word3))",
}
"""The word with a column's bit, by how many words there are."""


def visible_words(facts: HopperFacts) -> Iterator[str]:
    """Yield lines that tell which columns of a box lie inside its region, and which the key mask leaves."""
    views, key_mask = facts.k_views, facts.spec.key_mask
    ragged = {(tiles.view, tiles.box) for tiles in facts.key_tiles if any(tiles.ragged)}
    beyond = {(tiles.view, tiles.box) for tiles in facts.key_tiles if tiles.may_lie_beyond}
    if facts.passes_end:
        ragged.add((facts.program.everything.view, facts.program.everything.box))
    if key_mask:
        yield "token = column"
    for number, view in enumerate(views):
        if view.tensor not in "kv" or not (key_mask or (view.view, view.box) in ragged):
            continue
        counts = ("(extent & 255)", "((extent >> 8) & 255)", "((extent >> 16) & 255)")
        axes = list(zip(digits(view.box), counts, view.box, view.view.axes, strict=False))
        yield f"if (extent >> 24) == {number + 1}:"
        tests = [
            f"({digit} < {count})" for digit, count, side, _ in axes if side > 1 or (view.view, view.box) in beyond
        ]
        yield f"    visible = {' & '.join(tests)}"
        if key_mask:
            places = [f"(x{axis} + {digit}) * {stride}" for axis, (digit, _, _, (_, stride)) in enumerate(axes)]
            yield f"    token = {view.view.origin} + {' + '.join(places)}"
    if facts.has_means:
        yield f"if (extent >> 24) == {len(views) + 1}:"
        yield from indented(by_pattern([_visible_means(program) for program in facts.spec.programs]))
    if key_mask:
        has_tokens = f"visible & ((extent >> 24) <= {len(views)})" if facts.has_means else "visible"
        yield f"visible = visible & (gl.load(mask + token, mask={has_tokens}, other={int(facts.has_means)}) != 0)"


def find_visibility(facts: HopperFacts, side: int) -> Iterator[str]:
    """Yield lines that find the words of a box of keys, for each of the groups that read it and see others of them."""
    for number, mine in enumerate(facts.readers):
        places = facts.box_coords if facts.spec.key_mask or mine else []
        args = ", ".join(["extent", *mine, *places, *["mask"] * facts.spec.key_mask])
        yield f"{_words_of(number, side)} = visible_words({args})"


def store_visibility(facts: HopperFacts, side: int) -> Iterator[str]:
    """Yield lines that store words beside a stage: those of each reader, and of a reader those of each box."""
    readers, boxes = len(facts.readers), facts.program.boxes
    for number in range(readers):
        place = "stage" if readers == 1 else f"(stage * {readers} + {number})"
        place = place if boxes == 1 else f"{place} * {boxes} + {side}"
        yield f"visibility.index({place}).store({_words_of(number, side)})"


def _visible_means(program: TileProgram) -> list[str] | None:
    if program.means is None:
        return None
    lines = reads_groups(program.means, program.coords, "number")
    return ["number = x0 + column", *lines, f"visible = (number < {program.means.rows}) & (reads == 0)"]


def _words_of(reader: int, side: int) -> str:
    """Name the words of a box that a reader sees."""
    return f"words{side or ''}" if reader == 0 else f"others_words{side or ''}"

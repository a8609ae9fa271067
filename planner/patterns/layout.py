"""Token layouts: the ordered segments of a sequence and where every token sits.

A layout has a spelling that parses back::

    text:512 | h:64 w:64                                       512 global tokens, then a 64 by 64 grid
    hidden_states[t:33 h:45 w:80] | encoder_hidden_states:256  the same with the names of the inputs

Axes are listed from the slowest to the fastest: ``h:64 w:64`` is raster order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from planner.errors import BadSpelling, MalformedValue

AXIS_NAMES = ("t", "h", "w", "n")
"""Time, height, width, and the one axis of a sequence with neither."""

EXAMPLE = "text:512 | h:64 w:64"
MAX_TOKENS = 2**40
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class GlobalTokens:
    """Tokens without a place (text, class, latent, register): every query reads them and they read everything."""

    name: str
    tokens: int

    def verify(self) -> None:
        """Check the segment; raises MalformedValue."""
        if not _NAME.fullmatch(self.name) or self.name in AXIS_NAMES:
            raise MalformedValue(str(self), f"{self.name!r} is no segment name", f"Write it like {EXAMPLE!r}.")
        _check_extent(str(self), self.tokens)

    def __str__(self) -> str:
        return f"{self.name}:{self.tokens}"


@dataclass(frozen=True)
class Grid:
    """Tokens on a 1-D to 3-D grid in raster order; ``axes`` lists (name, extent) from slow to fast."""

    axes: tuple[tuple[str, int], ...]
    name: str = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Extents from slow to fast."""
        return tuple(extent for _, extent in self.axes)

    @property
    def tokens(self) -> int:
        """Tokens of the grid."""
        return math.prod(self.sizes)

    def verify(self) -> None:
        """Check the segment; raises MalformedValue."""
        names = [name for name, _ in self.axes]
        if not 1 <= len(names) <= 3 or len(set(names)) != len(names) or not set(names) <= set(AXIS_NAMES):
            fault = f"a grid has one to three different axes out of {', '.join(AXIS_NAMES)}"
            raise MalformedValue(str(self), fault, f"Write it like {EXAMPLE!r}.")
        if self.name and not _NAME.fullmatch(self.name):
            raise MalformedValue(str(self), f"{self.name!r} is no segment name", f"Write it like {EXAMPLE!r}.")
        for extent in self.sizes:
            _check_extent(str(self), extent)

    def __str__(self) -> str:
        axes = " ".join(f"{name}:{extent}" for name, extent in self.axes)
        return f"{self.name}[{axes}]" if self.name else axes


Segment = GlobalTokens | Grid


@dataclass(frozen=True)
class TokenLayout:
    """Ordered segments of a sequence; ``parse(str(layout)) == layout``."""

    segments: tuple[Segment, ...]

    @cached_property
    def tokens(self) -> int:
        """Length of the sequence."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The segments that are grids."""
        return tuple(segment for segment in self.segments if isinstance(segment, Grid))

    @property
    def grid(self) -> Grid:
        """The only grid; raises MalformedValue if there is none or more than one."""
        if len(self.grids) != 1:
            raise MalformedValue(str(self), f"it has {len(self.grids)} grids where one is needed", "Name one grid.")
        return self.grids[0]

    @cached_property
    def grid_start(self) -> int:
        """Sequence index of the grid's first token."""
        before = 0
        for segment in self.segments:
            if isinstance(segment, Grid):
                return before
            before += segment.tokens
        raise MalformedValue(str(self), "it has no grid", "Name one grid.")

    @property
    def global_tokens(self) -> int:
        """Tokens outside the grid."""
        return sum(segment.tokens for segment in self.segments if isinstance(segment, GlobalTokens))

    def coordinates(self, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the grid coordinates of sequence indices, meaningless where the token is global.

        index: int64 of any shape; so are the coordinates, one tensor an axis.
        """
        rest, coordinates = index - self.grid_start, list[torch.Tensor]()
        for extent in reversed(self.grid.sizes):
            coordinates.append(rest % extent)
            rest = rest // extent
        return tuple(reversed(coordinates))

    def is_global(self, index: torch.Tensor) -> torch.Tensor:
        """Tell whether tokens are global; index: int64 sequence indices of any shape, which the result has."""
        return (index < self.grid_start) | (index >= self.grid_start + self.grid.tokens)

    def verify(self) -> TokenLayout:
        """Return the layout itself; raises MalformedValue."""
        if not self.segments:
            raise MalformedValue("a layout without segments", "it describes no token", f"Write it like {EXAMPLE!r}.")
        for segment in self.segments:
            segment.verify()
        _check_extent(str(self), self.tokens)
        return self

    def __str__(self) -> str:
        return " | ".join(map(str, self.segments))

    @staticmethod
    def parse(text: str) -> TokenLayout:
        """Read a spelling such as ``text:512 | h:64 w:64``; raises BadSpelling or MalformedValue."""
        if len(text) > 4096:
            raise BadSpelling("layout", text, f"it is {len(text)} characters long", EXAMPLE)
        return TokenLayout(tuple(_parse_segment(part.strip(), text) for part in text.split("|"))).verify()


def _check_extent(value: str, extent: int) -> None:
    if not 1 <= extent <= MAX_TOKENS:
        raise MalformedValue(value, f"{extent} is not between 1 and 2**40", "Give every segment at least one token.")


def _parse_segment(part: str, text: str) -> Segment:
    named = re.fullmatch(r"(\S+)\s*\[([^\[\]]*)\]", part)
    if named:
        return Grid(_parse_extents(named[2].split(), text), named[1])
    extents = _parse_extents(part.split(), text)
    if len(extents) == 1 and extents[0][0] not in AXIS_NAMES:
        return GlobalTokens(*extents[0])
    return Grid(extents)


def _parse_extents(words: Sequence[str], text: str) -> tuple[tuple[str, int], ...]:
    extents = list[tuple[str, int]]()
    for word in words:
        name, colon, digits = word.partition(":")
        if not colon or not digits.isascii() or not digits.isdigit() or len(digits) > 15:
            raise BadSpelling("layout", text, f"{word!r} is not NAME:COUNT", EXAMPLE)
        extents.append((name, int(digits)))
    if not extents:
        raise BadSpelling("layout", text, "a segment is empty", EXAMPLE)
    return tuple(extents)

"""Shapes as text: sizes along axes, joined by x."""

from __future__ import annotations

from collections.abc import Sequence


def times(sizes: Sequence[int]) -> str:
    """Spell a shape: (4, 8, 8) is '4x8x8', and () is empty."""
    return "x".join(map(str, sizes))

"""Names of emoji, and which of them are held out of training: both follow from their code points."""

from __future__ import annotations

import hashlib

from planner.errors import UnknownName
from planner.extras import require

HELD_OUT = 16
"""One of this many emoji is held out of training."""
_TONES = range(0x1F3FB, 0x1F400)
_REGIONAL = range(0x1F1E6, 0x1F200)
_VARIATION = 0xFE0F
_CANCEL_TAG = 0xE007F


def code_points(code: str) -> tuple[int, ...]:
    """Read the code points of a file stem such as ``1f44b-1f3fb``; raises UnknownName."""
    try:
        return tuple(int(part, 16) for part in code.removesuffix(".webp").replace("_", "-").split("-"))
    except ValueError:
        raise UnknownName("emoji", code, ["1f44b-1f3fb"]) from None


def name_of(code: str) -> str:
    """Return the CLDR short name: ``1f44b-1f3fb`` is "waving hand light skin tone", flags are "flag of …".

    Raises UnknownName for code points that are no emoji, and MissingDependency without the emoji package.
    """
    names = require("emoji", "naming images").EMOJI_DATA
    points = code_points(code)
    text = "".join(map(chr, points))
    spellings = (text, text.replace(chr(_VARIATION), ""), text + chr(_CANCEL_TAG))
    data = next((names[spelling] for spelling in spellings if spelling in names), None)
    if data is None:
        raise UnknownName("emoji", code, ["1f44b-1f3fb"])
    name = str(data["en"]).strip(":").replace("_", " ")
    return f"flag of {name}" if points[0] in _REGIONAL or text[1:2] == chr(0xE0067) else name


def toneless(code: str) -> str:
    """Return the code of an emoji without skin tones and variation selectors, which all its variants share."""
    bare = [point for point in code_points(code) if point not in _TONES and point != _VARIATION]
    return "-".join(f"{point:x}" for point in bare)


def is_held_out(code: str) -> bool:
    """Tell whether an emoji is held out of training; either all its skin tones are, or none."""
    return hashlib.sha256(toneless(code).encode()).digest()[0] % HELD_OUT == 0

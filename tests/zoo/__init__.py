"""A zoo: every transformer class of diffusers in a small configuration, with inputs that the groups do not divide.

``ZOO[class name]`` builds one at two sizes. ``FAMILIES[name]()`` gives (model, kwargs) of those that many tests use,
``EXPECTED[name]`` the layouts to be found.
"""

from __future__ import annotations

from typing import Any

from zoo import sequences as sequences
from zoo.pictures import flux, flux_inputs, pixart, qwen, sd3
from zoo.registry import ZOO, Build, Case, Member
from zoo.videos import cogvideox, hunyuanvideo, latte, ltx, mochi, wan

__all__ = [
    "CROSS",
    "EXPECTED",
    "FAMILIES",
    "FORCE",
    "GROUPS",
    "ZOO",
    "Case",
    "Member",
    "flux",
    "flux_inputs",
    "mochi",
    "sd3",
    "qwen",
]

FORCE: dict[str, Any] = {"target": "cpu", "min_speedup": 0.0}
"""Options of planner.compile: the models here are so small that nothing gains; plan them all the same."""


FAMILIES: dict[str, Build] = {
    "flux": flux,
    "hunyuanvideo": hunyuanvideo,
    "wan": wan,
    "sd3": sd3,
    "cogvideox": cogvideox,
    "ltx": ltx,
    "qwen": qwen,
    "pixart": pixart,
    "latte": latte,
}
"""The families that must be captured whole, planned and run."""

CROSS = "cross-attention"
EXPECTED: dict[str, dict[str, str]] = {
    "flux": {
        "transformer_blocks.0.attn": "encoder_hidden_states:8 | hidden_states[h:12 w:16]",
        "single_transformer_blocks.0.attn": "encoder_hidden_states:8 | hidden_states[h:12 w:16]",
    },
    "hunyuanvideo": {
        "context_embedder.token_refiner.refiner_blocks.0.attn": "no grid",
        "transformer_blocks.0.attn": "hidden_states[t:5 h:6 w:8] | encoder_hidden_states:10",
        "single_transformer_blocks.0.attn": "hidden_states[t:5 h:6 w:8] | encoder_hidden_states:10",
    },
    "wan": {
        "blocks.0.attn1": "hidden_states[t:3 h:6 w:8]",
        "blocks.0.attn2": CROSS,
        "blocks.1.attn1": "hidden_states[t:3 h:6 w:8]",
        "blocks.1.attn2": CROSS,
    },
    "sd3": {
        "transformer_blocks.0.attn": "hidden_states[h:12 w:16] | encoder_hidden_states:10",
        "transformer_blocks.0.attn2": "hidden_states[h:12 w:16]",
        "transformer_blocks.1.attn": "hidden_states[h:12 w:16] | encoder_hidden_states:10",
    },
    "cogvideox": {"transformer_blocks.0.attn1": "encoder_hidden_states:8 | hidden_states[t:3 h:6 w:8]"},
    "ltx": {
        "transformer_blocks.0.attn1": "hidden_states[t:2 h:6 w:8]",
        "transformer_blocks.0.attn2": CROSS,
    },
    "qwen": {
        "transformer_blocks.0.attn": "encoder_hidden_states:7 | hidden_states[h:6 w:8]",
        "transformer_blocks.1.attn": "encoder_hidden_states:7 | hidden_states[h:6 w:8]",
    },
    "pixart": {"transformer_blocks.0.attn1": "hidden_states[h:6 w:8]", "transformer_blocks.0.attn2": CROSS},
    "latte": {
        "transformer_blocks.0.attn1": "hidden_states[h:4 w:4]",
        "transformer_blocks.0.attn2": CROSS,
        "temporal_transformer_blocks.0.attn1": "hidden_states[t:3]",
    },
}
"""Layout of each site, or how its reason for staying dense begins."""

GROUPS = {"latte": "2x3"} | dict.fromkeys(["flux", "sd3", "qwen", "pixart"], "3x5")
"""A group that divides neither axis of the family's grid; 1x3x5 for video."""

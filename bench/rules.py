"""What rules cost on a GPU beyond the patterns they are made of: heads that differ, noise levels, means of far groups.

    python -m bench.rules

One attention of FLUX, 24 heads of 128 channels in bf16 on random data, as a planned model runs it (runtime.dispatch).
Launches in turn, medians. ``parts`` is what the patterns take alone, each for its share of the heads.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.protocol import RESULTS, publish
from planner.layout import TokenLayout
from runtime.dispatch import attend
from runtime.measure import device_seconds, interleaved

LAYOUTS = {
    "FLUX 1024²": "text:512 | h:64 w:64",
    "FLUX 2048²": "text:512 | h:128 w:128",
    "FLUX 4096²": "text:512 | h:256 w:256",
}
NEAR, CROSS = "neighborhood{edge=clamp,group=16x16,radius=1}", "crisscross{axes=lines,group=16x16}"
HEADS = 24

ASKED = {
    "GRAT-B": (NEAR, {NEAR: 1.0}),
    "GRAT-X": (CROSS, {CROSS: 1.0}),
    "dense": ("dense", {"dense": 1.0}),
    "two patterns by head": (f"{NEAR}[heads=0-11]; {CROSS}[heads=12-23]", {NEAR: 0.5, CROSS: 0.5}),
    "three patterns by head": (
        f"{NEAR}[heads=0-9]; {CROSS}[heads=10-19]; dense[heads=20-23]",
        {NEAR: 10 / 24, CROSS: 10 / 24, "dense": 4 / 24},
    ),
    "GRAT-X below 0.8": (f"{CROSS}[noise=0:0.8]; dense[noise=0.8:1]", {CROSS: 1.0}),
    "GRAT-B with means": (NEAR.replace("group", "far=mean,group"), {NEAR: 1.0}),
    "GRAT-X with means": (CROSS.replace("group", "far=mean,group"), {CROSS: 1.0}),
}
"""Rules, and the patterns they are made of by their shares of the heads."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = [row for name, layout in LAYOUTS.items() for row in measure(name, layout, given.repeats)]
    publish("rules", rows, given.output, repeats=given.repeats)


def measure(name: str, layout: str, repeats: int) -> list[dict[str, Any]]:
    """A row for each of the rules on one layout."""
    tokens = TokenLayout.parse(layout).tokens
    query, key, value = (torch.randn(1, HEADS, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    noise = torch.tensor(0.5, device="cuda")
    runs = {
        asked: partial(attend, query, key, value, layout, rules, noise=noise if "noise" in rules else None)
        for asked, (rules, _) in ASKED.items()
    }
    taken = {asked: 1e3 * seconds for asked, seconds in interleaved(runs, repeats, device_seconds).items()}
    alone = {NEAR: taken["GRAT-B"], CROSS: taken["GRAT-X"], "dense": taken["dense"]}
    rows = list[dict[str, Any]]()
    for asked, (_, shares) in ASKED.items():
        parts = sum(alone[pattern] * share for pattern, share in shares.items())
        rows.append({"layout": name, "rules": asked, "milliseconds": taken[asked], "parts": parts})
    return rows


if __name__ == "__main__":
    main()

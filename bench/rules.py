"""The cost of rules on a GPU beyond that of their patterns: heads that differ, noise levels, pooled groups.

    python -m bench.rules

One attention of FLUX, 24 heads of 128 channels in bf16 on random data, as a planned model runs it
(planner.runtime.attention.dispatch). Launches in turn, medians. ``parts`` is the time of the patterns alone, each times
its share of the heads."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.protocol import RESULTS, publish
from planner.patterns.layout import TokenLayout
from planner.runtime.attention.dispatch import attend
from planner.runtime.measure import device_seconds, interleaved

LAYOUTS = {
    "FLUX 1024²": "text:512 | h:64 w:64",
    "FLUX 2048²": "text:512 | h:128 w:128",
    "FLUX 4096²": "text:512 | h:256 w:256",
}
NEAR, CROSS = "neighborhood{edge=clamp,group=16x16,radius=1}", "crisscross{axes=lines,group=16x16}"
POOLED_NEAR, POOLED_CROSS = (pattern.replace("group", "pooled=mean,group") for pattern in (NEAR, CROSS))
SMALL = "neighborhood{edge=clamp,group=8x8,radius=1}"
HEADS = 24

RULES = {
    "GRAT-B": (NEAR, {NEAR: 1.0}),
    "GRAT-X": (CROSS, {CROSS: 1.0}),
    "dense": ("dense", {"dense": 1.0}),
    "two patterns by head": (f"{NEAR}[heads=0-11]; {CROSS}[heads=12-23]", {NEAR: 0.5, CROSS: 0.5}),
    "three patterns by head": (
        f"{NEAR}[heads=0-9]; {CROSS}[heads=10-19]; dense[heads=20-23]",
        {NEAR: 10 / 24, CROSS: 10 / 24, "dense": 4 / 24},
    ),
    "two patterns, heads uneven": (
        f"{NEAR}[heads=0,3,4,7,8,9,13,14,17,20,22,23]; {CROSS}[heads=1-2,5-6,10-12,15-16,18-19,21]",
        {NEAR: 0.5, CROSS: 0.5},
    ),
    "by head and noise, with means": (
        f"{POOLED_NEAR}[heads=0,3,4,7,8,9,13,14,17,20,noise=0:0.6]; {CROSS}[heads=1-2,5-6,10-12,15-16,18-19]; "
        f"dense[heads=21-23]; {POOLED_CROSS}[heads=0,3,4,7,8,9,13,14,17,20,noise=0.6:1]",
        {POOLED_NEAR: 10 / 24, CROSS: 11 / 24, "dense": 3 / 24},
    ),
    "GRAT-B in groups of 8x8": (SMALL, {SMALL: 1.0}),
    "two patterns of 8x8 and 16x16": (f"{SMALL}[heads=0-11]; {CROSS}[heads=12-23]", {SMALL: 0.5, CROSS: 0.5}),
    "GRAT-X below 0.8": (f"{CROSS}[noise=0:0.8]; dense[noise=0.8:1]", {CROSS: 1.0}),
    "GRAT-B with means": (POOLED_NEAR, {NEAR: 1.0}),
    "GRAT-X with means": (POOLED_CROSS, {CROSS: 1.0}),
}
"""Rules, and the share of the heads of each of their patterns, by name."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = [row for name in options.layouts for row in measure(name, LAYOUTS[name], options.repeats)]
    publish("rules", rows, options.output, repeats=options.repeats)


def measure(name: str, layout: str, repeats: int) -> list[dict[str, Any]]:
    """Measure each of the rules on one layout: a row each."""
    tokens = TokenLayout.parse(layout).tokens
    query, key, value = (torch.randn(1, HEADS, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    noise = torch.tensor(0.5, device="cuda")
    runs = {
        label: partial(attend, query, key, value, layout, rules, noise=noise if "noise" in rules else None)
        for label, (rules, _) in RULES.items()
    }
    milliseconds = {label: 1e3 * seconds for label, seconds in interleaved(runs, repeats, device_seconds).items()}
    alone = {rules: milliseconds[label] for label, (rules, _) in RULES.items()}
    rows = list[dict[str, Any]]()
    for label, (_, shares) in RULES.items():
        parts = sum(alone[pattern] * share for pattern, share in shares.items())
        rows.append({"layout": name, "rules": label, "milliseconds": milliseconds[label], "parts": parts})
    return rows


if __name__ == "__main__":
    main()

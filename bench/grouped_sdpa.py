"""Grouped attention against dense attention on this CPU, bf16 and float32, 4,096 and 16,384 image tokens.

*permuting* is the share of grouped attention's time in which tokens are brought into grouped order and back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bench.protocol import publish
from planner.patterns.density import density
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern
from planner.runtime.attention.cpu import grouped_sdpa
from planner.runtime.attention.gather_plan import make_gather_plan
from planner.runtime.measure import interleaved

LAYOUTS = {
    "h:64 w:64": ["8x8", "16x16"],
    "text:512 | h:64 w:64": ["8x8", "16x16"],
    "t:4 h:32 w:32": ["2x8x8"],
    "h:128 w:128": ["8x8", "16x16"],
    "text:512 | h:128 w:128": ["16x16"],
    "t:16 h:32 w:32": ["4x8x8"],
}
KINDS = ("crisscross{{axes=planes,group={}}}", "neighborhood{{radius=1,group={}}}")
HEADS, HEAD_DIM = 4, 64


def main() -> None:
    rows = []
    for layout, groups in LAYOUTS.items():
        tokens = TokenLayout.parse(layout).tokens
        patterns = [str(parse_pattern(kind.format(group))) for group in groups for kind in KINDS]
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(1, HEADS, tokens, HEAD_DIM).to(dtype) for _ in range(3))
            runs = {"dense": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)}
            runs |= {p: lambda p=p, q=q, k=k, v=v, layout=layout: grouped_sdpa(q, k, v, layout, p) for p in patterns}
            runs |= {
                f"permute {p}": lambda p=p, q=q, k=k, v=v, layout=layout: permute(q, k, v, layout, p) for p in patterns
            }
            seconds = interleaved(runs, repeats=5 if tokens < 10_000 else 3)
            for pattern in patterns:
                share = density(parse_pattern(pattern), TokenLayout.parse(layout))
                speedup = seconds["dense"] / seconds[pattern]
                rows.append(
                    {
                        "layout": layout,
                        "pattern": pattern,
                        "dtype": str(dtype).removeprefix("torch."),
                        "density": round(share, 4),
                        "dense_ms": seconds["dense"] * 1e3,
                        "grouped_ms": seconds[pattern] * 1e3,
                        "permuting": seconds[f"permute {pattern}"] / seconds[pattern],
                        "speedup": speedup,
                        "of_bound": speedup * share,
                    }
                )
    publish("grouped_sdpa", rows)


def permute(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: str, pattern: str) -> torch.Tensor:
    """Bring tokens into grouped order and back, as grouped_sdpa does, without attention."""
    plan = make_gather_plan(layout, pattern, q.device)
    grouped = [x.index_select(2, plan.order) for x in (q, k, v)]
    return grouped[0].index_select(2, plan.inverse)


if __name__ == "__main__":
    with torch.inference_mode():
        main()

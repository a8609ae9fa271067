"""Where the reference models' attention lies: softmax mass by distance, for each layer, head and noise level.

    python -m bench.attention emoji-flux
    python -m bench.attention emoji-hunyuan

Looks at noised images of held-out emoji with their prompts. Draws bench/results/attention-MODEL.png and writes the
mass that uniform GRAT-B and GRAT-X keep.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import torch

import planner
from bench.protocol import RESULTS, publish
from bench.quality import GROUPS, held_out
from planner.models.emoji.reference import SHIPPED, load
from planner.models.emoji.text import TextEncoder
from planner.models.families.base import velocity_of
from planner.patterns.spelling import parse_request
from planner.runtime.evidence.locality import RecordLocality, SiteLocality

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIGMAS = (0.95, 0.8, 0.6, 0.4, 0.2, 0.05)
PATTERNS = (
    "crisscross{{axes=lines,group={}}}",
    "neighborhood{{radius=1,group={}}}",
    "neighborhood{{radius=2,group={}}}",
)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SHIPPED))
    parser.add_argument("--count", type=int, default=4, help="images or clips")
    parser.add_argument("--weights", type=Path, help="weights of a training run, in place of those shipped")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _, pipeline = load(options.model, device=device, folder=options.weights)
    prompts, x = held_out(pipeline.shape, options.count, device)
    text = TextEncoder(device)(prompts)
    velocity = velocity_of(model)
    patterns = [
        str(parse_request(pattern.format(group)).pattern()) for pattern in PATTERNS for group in GROUPS[x.dim() - 2]
    ]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    plan = _plan(model, velocity, x[:1], text)
    by_sigma = dict[float, list[SiteLocality]]()
    for sigma in SIGMAS:
        with RecordLocality(plan, patterns) as mode:
            velocity(model, (1 - sigma) * x + sigma * noise, torch.full((len(x),), sigma, device=device), text)
        by_sigma[sigma] = mode.records
    _draw(options.out / f"attention-{options.model}.png", by_sigma)
    publish(f"attention-{options.model}", _rows(by_sigma, patterns), options.out, images=len(x))


def _plan(model: torch.nn.Module, velocity: Any, x: torch.Tensor, text: Any) -> planner.Plan:
    """Make the dense plan of a call, for its layouts."""
    compiled = planner.compile(model, pattern="dense")
    first = type(text)(text.tokens[:1], text.pooled[:1])
    velocity(compiled, x, torch.full((1,), 0.5, device=x.device), first)
    return planner.report(compiled).plans[0]


def _rows(by_sigma: dict[float, list[SiteLocality]], patterns: list[str]) -> list[dict[str, Any]]:
    """Tabulate by pattern and noise level the mass kept, in the mean over layers and heads and by the worst of them."""
    rows = list[dict[str, Any]]()
    for pattern in patterns:
        for sigma, localities in by_sigma.items():
            kept = torch.stack([locality.recall[pattern] for locality in localities])
            rows.append({"pattern": pattern, "sigma": sigma, "mean": float(kept.mean()), "worst": float(kept.min())})
    return rows


def _draw(path: Path, by_sigma: dict[float, list[SiteLocality]]) -> None:
    """Draw a panel a layer: cumulative mass by distance, a line a head and noise level, dashed for uniform mass."""
    sites = defaultdict[str, list[tuple[float, SiteLocality]]](list)
    for sigma, localities in by_sigma.items():
        for locality in localities:
            sites[locality.site].append((sigma, locality))
    columns = 5 if len(sites) > 6 else 3
    rows = -(-len(sites) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 2.6 * rows), sharex=True, sharey=True, squeeze=False
    )
    colours = matplotlib.colormaps["viridis"]
    for panel, (site, localities) in zip(axes.flat, sites.items(), strict=False):
        for order, (sigma, locality) in enumerate(localities):
            for head, mass in enumerate(locality.by_distance):
                label = f"noise {sigma:g}" if head == 0 else None
                panel.plot(
                    mass.cumsum(0), color=colours(order / max(1, len(localities) - 1)), linewidth=0.7, label=label
                )
        panel.plot(localities[0][1].uniform.cumsum(0), color="black", linestyle="--", linewidth=1, label="even")
        panel.set_title(site, fontsize=7)
        panel.set_xscale("symlog", linthresh=1)
        panel.grid(visible=True, alpha=0.3)
    axes.flat[0].legend(fontsize=6)
    figure.supxlabel("Chebyshev distance, tokens")
    figure.supylabel("softmax mass within")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()

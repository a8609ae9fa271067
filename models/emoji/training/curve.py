"""The loss curve of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from planner.plan.atomic_write import replacing


def save_curve(path: Path, curve: Sequence[dict[str, float]]) -> None:
    """Draw the loss over samples seen, on logarithmic axes."""
    figure, axes = plt.subplots(figsize=(6, 3.5), dpi=120)
    axes.loglog([point["samples"] for point in curve], [point["loss"] for point in curve], linewidth=0.8)
    axes.set(xlabel="pictures seen", ylabel="mean squared error of the velocity")
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.tight_layout()
    with replacing(path) as scratch:
        figure.savefig(scratch)
    plt.close(figure)

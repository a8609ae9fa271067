"""The reference models: small and trained, loaded by name from the package of their weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from planner.errors import BadModelFolder, DamagedFile, MissingDependency, NoWeights, UnknownName
from planner.extras import EXTRAS
from planner.models.catalogue import CATALOGUE, default_size, load_config
from planner.models.emoji.integrity import digest, verify_file
from planner.models.emoji.sampling import Pipeline
from planner.models.emoji.text import PromptBook
from planner.models.metrics.scorer import Scorer
from planner.plan.atomic_write import write_text
from planner.plan.evidence import Evidence

PACKAGE = "grat_planner_weights"
"""The package of the weights, with a folder for each model."""

DEMO_PROMPTS = {
    "emoji-flux": ("smiling face with sunglasses", "hamburger, blue background"),
    "emoji-hunyuan": ("ghost",),
}
"""The prompts of the demo, which the shipped evidence was not recorded on."""

DIGESTS, EVIDENCE = "SHA256SUMS", "evidence.safetensors"


SHIPPED = tuple(name for name, entry in CATALOGUE.items() if entry.trained)


class Reference(NamedTuple):
    """A loaded reference model: its transformer, scheduler, and a pipeline of both."""

    model: torch.nn.Module
    scheduler: Any
    pipeline: Pipeline


def load(
    name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, folder: Path | None = None
) -> Reference:
    """Load a reference model: ``model, scheduler, pipeline = models.load("emoji-flux")``.

    folder: other weights of the same model, as training writes them. Raises UnknownName, NoWeights for a model of the
    catalogue without shipped weights, DamagedFile where a file is not what was shipped, and BadModelFolder for a folder
    without a transformer.
    """
    import diffusers
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    _require_shipped(name)
    source = folder or _verified(name)
    if not (source / "transformer" / "config.json").is_file():
        raise BadModelFolder(str(source), "it has no transformer/config.json")
    cls = getattr(diffusers, str(load_config(name)["_class_name"]))
    model = cls.from_pretrained(source / "transformer", torch_dtype=dtype, low_cpu_mem_usage=False).to(device).eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(source / "scheduler")
    book = PromptBook(weights_folder() / name / "prompts.safetensors")
    (width, height), frames = default_size(name)
    shape = (3, height, width) if frames == 1 else (3, frames, height, width)
    return Reference(model, scheduler, Pipeline(model, scheduler, book, shape))


def load_evidence(name: str) -> Evidence:
    """Load the evidence that ships with a reference model: for its own size, in float32, with the demo's batch.

    Raises UnknownName, NoWeights and DamagedFile.
    """
    _require_shipped(name)
    return Evidence.load(_verified(name) / EVIDENCE)


def load_scorer(device: str = "cpu", folder: Path | None = None) -> Scorer:
    """Load the shipped scorer, or that of a training run's folder; raises DamagedFile."""
    from safetensors.torch import load_file

    scorer = Scorer()
    scorer.load_state_dict(load_file((folder or _verified("emoji-scorer")) / "model.safetensors"))
    return scorer.requires_grad_(False).to(device).eval()


def weights_folder() -> Path:
    """Return the folder that holds a folder of weights for each model; raises MissingDependency."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingDependency(PACKAGE, "the models with weights", f"Install grat-planner[{EXTRAS[PACKAGE]}].")
    return Path(spec.origin).parent


def verify(home: Path) -> None:
    """Compare the files of a folder with its SHA256SUMS; raises DamagedFile for one that differs or is missing."""
    sums = home / DIGESTS
    if not sums.is_file():
        raise DamagedFile(str(sums), "a list of digests", "that of no file")
    for line in sums.read_text().splitlines():
        expected, _, name = line.partition("  ")
        verify_file(home / name, expected)


def seal(home: Path) -> None:
    """Write SHA256SUMS of the .json and .safetensors files of a folder."""
    files = sorted(path for path in home.rglob("*") if path.suffix in (".json", ".safetensors"))
    lines = [f"{digest(path)}  {path.relative_to(home).as_posix()}" for path in files]
    write_text(home / DIGESTS, "\n".join(lines) + "\n")


def _require_shipped(name: str) -> None:
    if name not in CATALOGUE:
        raise UnknownName("model", name, CATALOGUE)
    if name not in SHIPPED:
        raise NoWeights(name, SHIPPED)


def _verified(name: str) -> Path:
    home = weights_folder() / name
    verify(home)
    return home

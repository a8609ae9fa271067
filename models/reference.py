"""The reference models: small, trained, shipped with the package, loaded by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.catalogue import CATALOGUE, load_config
from models.sampling import Pipeline
from models.scorer import Scorer
from models.text import PromptBook
from planner.errors import BadModelFolder, DamagedFile, NoWeights, UnknownName

WEIGHTS = Path(__file__).parent / "weights"
DIGESTS = "SHA256SUMS"


@dataclass(frozen=True)
class Shipped:
    """How a reference model samples: the shape of a sample, guidance and steps."""

    shape: tuple[int, ...]
    guidance: float
    steps: int


SHIPPED: dict[str, Shipped] = {
    "emoji-flux": Shipped((3, 128, 128), 4.0, 24),
    "emoji-hunyuan": Shipped((3, 8, 64, 64), 4.0, 24),
}


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

    if name not in CATALOGUE:
        raise UnknownName("model", name, CATALOGUE)
    if name not in SHIPPED:
        raise NoWeights(name, SHIPPED)
    home, shipped = WEIGHTS / name, SHIPPED[name]
    if folder is None:
        verify(home)
    source = folder or home
    if not (source / "transformer" / "config.json").is_file():
        raise BadModelFolder(str(source), "it has no transformer/config.json")
    cls = getattr(diffusers, str(load_config(name)["_class_name"]))
    model = cls.from_pretrained(source / "transformer", torch_dtype=dtype, low_cpu_mem_usage=False).to(device).eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(source / "scheduler")
    book = PromptBook(home / "prompts.safetensors")
    return Reference(model, scheduler, Pipeline(model, scheduler, book, shipped.shape, shipped.guidance, shipped.steps))


def load_scorer(device: str = "cpu", folder: Path | None = None) -> Scorer:
    """The shipped scorer, or that of a training run. Raises DamagedFile."""
    from safetensors.torch import load_file

    home = folder or WEIGHTS / "emoji-scorer"
    if folder is None:
        verify(home)
    scorer = Scorer()
    scorer.load_state_dict(load_file(home / "model.safetensors"))
    return scorer.requires_grad_(False).to(device).eval()


def verify(home: Path) -> None:
    """Compare the files of a folder with its SHA256SUMS; raises DamagedFile for one that differs or is missing."""
    sums = home / DIGESTS
    if not sums.is_file():
        raise DamagedFile(str(sums), "a list of digests", "that of no file")
    for line in sums.read_text().splitlines():
        expected, _, name = line.partition("  ")
        path = home / name
        found = digest(path) if path.is_file() else "that of no file"
        if found != expected:
            raise DamagedFile(str(path), f"SHA-256 {expected[:16]}…", f"{found[:16]}…")


def seal(home: Path) -> None:
    """Write SHA256SUMS over all files of a folder but itself and its texts and pictures."""
    files = sorted(path for path in home.rglob("*") if path.suffix in (".json", ".safetensors"))
    lines = [f"{digest(path)}  {path.relative_to(home).as_posix()}" for path in files]
    (home / DIGESTS).write_text("\n".join(lines) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

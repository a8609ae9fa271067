"""Train emoji-hunyuan, a small HunyuanVideo in pixel space, on animated emoji."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

from planner.models.catalogue import load_config
from planner.models.emoji.data.naming import is_held_out
from planner.models.emoji.data.sprites import clips
from planner.models.emoji.training.loop import Recipe, Stage, arguments, train

STAGES = {
    "stills": Stage(((1, 64),), (1,), 256 * 64**2, 1e-3),
    "clips": Stage(((8, 64), (1, 64)), (9, 1), 32 * 8 * 64**2, 7e-4),
}
GRID_PROMPTS = (
    "rocket",
    "red heart",
    "waving hand medium skin tone",
    "grinning face",
    "dolphin",
    "butterfly",
    "clapping hands light skin tone",
    "alarm clock",
    "face with tears of joy",
    "dog face",
    "bell",
    "rainbow",
    "ghost",
    "snowman",
    "owl, teal background",
    "party popper, yellow to pink gradient",
)


class Unmasked(HunyuanVideoAttnProcessor2_0):
    """Attention without the mask, which masks nothing here, so that PyTorch chooses its fast kernel in training."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """Attend as the base class does without a mask: attention_mask is ignored.

        hidden_states: (batch, tokens, channels). encoder_hidden_states: (batch, text tokens, channels).
        """
        return super().__call__(attn, hidden_states, encoder_hidden_states, None, image_rotary_emb)


def unmask(model: Any) -> None:
    """Give every block of the transformer the processor without a mask; the text refiner keeps its own."""
    processors = model.attn_processors
    model.set_attn_processor({n: Unmasked() if "transformer_blocks" in n else p for n, p in processors.items()})


def main() -> None:
    """Parse the command line and train."""
    options = arguments("Train emoji-hunyuan on animated emoji.", list(STAGES))
    sprites = clips().where(lambda code: not is_held_out(code))
    config = load_config("emoji-hunyuan")
    train(Recipe(config, sprites, STAGES, GRID_PROMPTS, emoji=1, prepare=unmask), options)


if __name__ == "__main__":
    main()

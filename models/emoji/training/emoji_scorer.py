"""Train the scorer on scenes of emoji that training may see; validate it on images held out."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from planner.models.emoji.data.naming import is_held_out, toneless
from planner.models.emoji.data.scenes import paint, simple_scene
from planner.models.emoji.data.sprites import Sprites, images
from planner.models.emoji.text import TextEncoder
from planner.models.emoji.training.batches import Source, batches
from planner.models.metrics.scorer import Scorer, retrieval
from planner.plan.atomic_write import replacing, write_text

BATCH = 512
SIZES = (64, 128)
RATE = 1e-3


def main() -> None:
    """Train for so many seconds, validate, and write model.safetensors and validation.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    sprites, encoder = images(), TextEncoder(options.device)
    sprites = sprites.to(options.device)
    seen = sprites.where(lambda code: not is_held_out(code))
    scorer = Scorer().to(options.device)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=RATE, weight_decay=0.05)

    source = Source(seen, ((1, 64), (1, 128)), (3, 1), BATCH * 64**2)
    start, steps, seen_images, losses = time.monotonic(), 0, 0, list[torch.Tensor]()
    for batch in batches(source, encoder, 0):
        passed = (time.monotonic() - start) / options.seconds
        if passed >= 1:
            break
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (1 + steps) / 100) * (1 - passed)
        with torch.autocast(options.device, torch.bfloat16):
            x = (batch.images[:, :, 0] + 1) / 2
            noisy = x + torch.randn_like(x) * 0.1 * torch.rand(len(x), 1, 1, 1, device=x.device)
            scores = scorer.embed_images(noisy) @ scorer.embed_prompts(batch.text.pooled).T
        scores = scores.float() * scorer.log_scale.exp().clamp(max=100)
        right = torch.arange(len(x), device=x.device)
        loss = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        steps += 1
        seen_images += len(x)
        if steps % 200 == 0:
            print(f"scorer: {steps} steps, loss {torch.stack(losses[-200:]).mean():.3f}", flush=True)
    report: dict[str, Any] = {"steps": steps, "pictures": seen_images, "seconds": options.seconds}
    report |= {"held_out": validate(scorer.eval(), sprites.where(is_held_out), encoder)}
    report |= {"training": validate(scorer, seen, encoder)}
    print(json.dumps(report), flush=True)
    with replacing(options.out / "model.safetensors") as scratch:
        save_file({k: v.to(torch.bfloat16) for k, v in scorer.state_dict().items()}, scratch)
    write_text(options.out / "validation.json", json.dumps(report, indent=1) + "\n")


@torch.inference_mode()
def validate(scorer: Scorer, sprites: Sprites, encoder: TextEncoder) -> dict[str, Any]:
    """Measure image-to-name retrieval among all sprites; a name of another skin tone counts as right."""
    scenes = [simple_scene(sprites, index) for index in range(len(sprites))]
    ours, theirs = list[torch.Tensor](), list[torch.Tensor]()
    for first in range(0, len(scenes), 256):
        part = scenes[first : first + 256]
        ours.append(scorer.embed_images((paint(part, sprites, 128).images[:, :, 0] + 1) / 2))
        theirs.append(scorer.embed_prompts(encoder([scene.prompt for scene in part]).pooled))
    scores, answers = torch.cat(ours) @ torch.cat(theirs).T, [toneless(code) for code in sprites.codes]
    return {"candidates": len(set(answers)), **{f"top{k}": retrieval(scores, answers, k) for k in (1, 5)}}


if __name__ == "__main__":
    main()

"""Train emoji-flux, a small FLUX in pixel space, on scenes of still emoji."""

from __future__ import annotations

from planner.models.catalogue import load_config
from planner.models.emoji.data.naming import is_held_out
from planner.models.emoji.data.sprites import images
from planner.models.emoji.training.loop import Recipe, Stage, arguments, train

STAGES = {
    "32px": Stage(((1, 32),), (1,), 1024 * 32**2, 1e-3),
    "64px": Stage(((1, 64),), (1,), 256 * 64**2, 1e-3),
    "128px": Stage(((1, 128),), (1,), 64 * 128**2, 7e-4),
    "mixed": Stage(((1, 128), (1, 256)), (3, 1), 64 * 128**2, 4e-4),
}
GRID_PROMPTS = (
    "red apple",
    "rocket",
    "cat face",
    "red heart",
    "pizza",
    "smiling face with sunglasses",
    "octopus",
    "sunflower",
    "thumbs up medium skin tone",
    "firefighter dark skin tone",
    "hamburger, blue background",
    "guitar",
    "flag of Japan",
    "automobile",
    "tiger face, teal to purple gradient",
    "birthday cake",
    "dog face on the left, cat face on the right",
    "red apple above, banana below, yellow background",
    "small soccer ball",
    "large owl, black background",
    "crown top left, key top right, bell bottom left, gem stone bottom right",
    "butterfly",
    "ghost",
    "alarm clock",
)


def main() -> None:
    """Parse the command line and train."""
    options = arguments("Train emoji-flux on scenes of still emoji.", list(STAGES))
    sprites = images().where(lambda code: not is_held_out(code))
    train(Recipe(load_config("emoji-flux"), sprites, STAGES, GRID_PROMPTS), options)


if __name__ == "__main__":
    main()

"""``python -m planner.models.emoji.data``: fetch the images and animations and prepare them for training."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import track

from planner.errors import PlannerError
from planner.models.emoji.data.naming import is_held_out
from planner.models.emoji.data.packages import ANIMATIONS, IMAGES, cache_folder, fetch
from planner.models.emoji.data.sprites import clips, images


def main() -> None:
    """Fetch five packages (750 MB), shrink the animations and print a summary; finished steps are skipped."""
    console = Console(stderr=True)
    console.print(f"The cache is {cache_folder()}.")
    for package in track((IMAGES, *ANIMATIONS), "fetching", console=console):
        console.print(f"{package.name} {package.version}, {package.megabytes} MB")
        fetch(package, cache_folder())
    for kind, read in (("pictures", images), ("animations, shrunk to 64 pixels", clips)):
        with console.status(f"reading {kind}"):
            sprites = read()
        held_out = sum(map(is_held_out, sprites.codes))
        console.print(f"{len(sprites):,} {kind}, {len(sprites.frames):,} frames, {held_out} held out")


if __name__ == "__main__":
    try:
        main()
    except PlannerError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

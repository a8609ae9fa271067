"""Images and animations as arrays, read out of the archives; each is checked to decode."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from planner.errors import BadPicture
from planner.models.emoji.data.naming import code_points, name_of, toneless
from planner.models.emoji.data.packages import ANIMATIONS, IMAGES, cache_folder, fetch
from planner.plan.atomic_write import replacing

IMAGE_SIZE = 256
CLIP_SIZE = 64
CLIP_STRIDE = 4
"""Every fourth frame of an animation is kept: 30 frames a second become 7.5."""
WEBP = {"quality": 75, "alpha_quality": 70, "method": 6}


@dataclass(frozen=True)
class Sprites:
    """RGBA images of one size, one or more frames each.

    codes: file stems of the emoji. names: their names. first, counts: the index of each one's first frame, and how many
    it has. frames: uint8 (all frames, size, size, 4), straight alpha.
    """

    codes: tuple[str, ...]
    names: tuple[str, ...]
    first: np.ndarray
    counts: np.ndarray
    frames: torch.Tensor

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def _cumulative_odds(self) -> np.ndarray:
        variants = Counter(map(toneless, self.codes))
        parts = np.array([variants[toneless(code)] ** -0.5 for code in self.codes])
        return parts.cumsum() / parts.sum()

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw the indices of random sprites, (count,); an emoji of k skin tones is as likely as √k emoji without."""
        return self._cumulative_odds.searchsorted(rng.random(count))

    @staticmethod
    def of(frames: dict[str, np.ndarray]) -> Sprites:
        """Make sprites of uint8 arrays (frames, size, size, 4) by code."""
        codes = tuple(sorted(frames))
        counts = np.array([len(frames[code]) for code in codes])
        stacked = torch.from_numpy(np.concatenate([frames[code] for code in codes]))
        return Sprites(codes, tuple(map(name_of, codes)), counts.cumsum() - counts, counts, stacked)

    def to(self, device: torch.device | str) -> Sprites:
        """Return the same sprites with their frames on a device."""
        return replace(self, frames=self.frames.to(device))

    def where(self, keep: Callable[[str], bool]) -> Sprites:
        """Select the sprites whose code meets a condition; frames are shared, not copied."""
        kept = [index for index, code in enumerate(self.codes) if keep(code)]
        codes, names = (tuple(values[index] for index in kept) for values in (self.codes, self.names))
        return Sprites(codes, names, self.first[kept], self.counts[kept], self.frames)


def images(cache: Path | None = None) -> Sprites:
    """Load all still images, one frame of 256 pixels each, fetched if need be; raises what fetch and decode raise."""
    archive = fetch(IMAGES, cache or cache_folder())
    return Sprites.of({code: decode(data, f"{archive.name}/{code}", IMAGE_SIZE) for code, data in _members(archive)})


def clips(cache: Path | None = None) -> Sprites:
    """Load all animations, every fourth frame at 64 pixels; they are fetched and shrunk if need be."""
    folder = cache or cache_folder()
    frames = dict[str, np.ndarray]()
    for package in ANIMATIONS:
        small = folder / package.archive.replace(".tgz", f"-{CLIP_SIZE}px.tar")
        if not small.exists():
            shrink(fetch(package, folder), small)
        frames |= {code: decode(data, f"{small.name}/{code}", CLIP_SIZE) for code, data in _members(small)}
    return Sprites.of(frames)


def shrink(archive: Path, small: Path) -> None:
    """Write every fourth frame of an archive's animations, at 64 pixels, to another one; still images are left out."""
    with replacing(small) as scratch, tarfile.open(scratch, "w") as out, Pool() as pool:
        jobs = ((code, data, f"{archive.name}/{code}") for code, data in _members(archive))
        for code, data in pool.imap(_shrink_one, jobs, chunksize=8):
            if data:
                entry = tarfile.TarInfo(f"package/assets/{code}.webp")
                entry.size = len(data)
                out.addfile(entry, io.BytesIO(data))


def decode(data: bytes, where: str, size: int, stride: int = 1) -> np.ndarray:
    """Decode every stride-th frame of a WebP image as uint8 (frames, size, size, 4); raises BadPicture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kept = range(0, getattr(image, "n_frames", 1), stride)
            return np.stack([_frame(image, index, size) for index in kept])
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadPicture(where, str(error) or type(error).__name__) from error


def _frame(image: Image.Image, index: int, size: int) -> np.ndarray:
    image.seek(index)
    frame = image.convert("RGBA")
    side = min(frame.size)
    left, top = ((extent - side) // 2 for extent in frame.size)
    box = (left, top, left + side, top + side)
    whole = frame.size == (size, size)
    return np.asarray(frame if whole else frame.resize((size, size), Image.Resampling.LANCZOS, box))


def _shrink_one(job: tuple[str, bytes, str]) -> tuple[str, bytes]:
    code, data, where = job
    frames = decode(data, where, CLIP_SIZE, CLIP_STRIDE)
    if len(frames) == 1:
        return code, b""
    images = [Image.fromarray(frame) for frame in frames]
    out = io.BytesIO()
    images[0].save(out, "WEBP", save_all=True, append_images=images[1:], duration=133, loop=0, **WEBP)
    return code, out.getvalue()


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the (code, WebP bytes) of each image of an archive, in its order; raises BadPicture."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name.endswith(".webp"):
                    file = tar.extractfile(member)
                    assert file is not None
                    code = "-".join(f"{point:04x}" for point in code_points(Path(member.name).stem))
                    yield code, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadPicture(str(archive), str(error) or type(error).__name__) from error

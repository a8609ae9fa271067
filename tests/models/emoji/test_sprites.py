import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from planner.errors import BadPicture
from planner.models.emoji.data import sprites
from planner.models.emoji.data.sprites import Sprites, decode, shrink


def webp(frames):
    images = [Image.fromarray(frame) for frame in frames]
    out = io.BytesIO()
    images[0].save(out, "WEBP", save_all=True, append_images=images[1:], lossless=True, duration=33)
    return out.getvalue()


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(f"package/assets/{name}.webp")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def clip(frames, size=32):
    """Frames of one colour each, opaque."""
    shades = np.linspace(0, 255, frames).astype(np.uint8)
    made = np.full((frames, size, size, 4), 255, np.uint8)
    made[..., 0] = shades[:, None, None]
    return made


def test_frames_decode_as_they_were_written():
    frames = clip(5)
    assert np.array_equal(decode(webp(frames), "here", 32), frames)
    assert np.array_equal(decode(webp(frames), "here", 32, stride=2), frames[::2])


def test_a_picture_that_is_not_square_is_cropped_in_the_middle():
    tall = np.full((40, 32, 4), 255, np.uint8)
    tall[:4, :, :3], tall[-4:, :, :3] = 0, 0
    assert decode(webp([tall]), "here", 32).min() == 255


@pytest.mark.parametrize("damage", [b"", b"RIFF", b"not an image", "cut"])
def test_what_does_not_decode_is_named(damage):
    data = webp(clip(3))[:60] if damage == "cut" else damage
    with pytest.raises(BadPicture, match="at some archive/1f600"):
        decode(data, "some archive/1f600", 32)


def test_shrinking_keeps_every_fourth_frame_and_drops_stills(tmp_path):
    members = {"1f600": webp(clip(9, 64)), "1f601": webp(clip(1, 64))}
    shrink(archive(tmp_path / "a.tgz", members), tmp_path / "small.tar")
    found = dict(sprites._members(tmp_path / "small.tar"))
    assert list(found) == ["1f600"]
    frames = decode(found["1f600"], "here", sprites.CLIP_SIZE)
    assert frames.shape == (3, 64, 64, 4)
    assert np.allclose(frames[:, 32, 32, 0], clip(9)[::4, 0, 0, 0], atol=12)


def test_a_bad_animation_leaves_no_half_written_archive(tmp_path):
    bad = archive(tmp_path / "a.tgz", {"1f600": b"no image"})
    with pytest.raises(BadPicture):
        shrink(bad, tmp_path / "small.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_cut_archive_is_named(tmp_path):
    path = archive(tmp_path / "a.tgz", {f"1f60{digit}": webp(clip(2)) for digit in range(8)})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadPicture, match=r"a\.tgz"):
        dict(sprites._members(path))


def test_sprites_know_their_frames_and_names():
    made = Sprites.of({"1f680": clip(3), "1f34e": clip(2)})
    assert made.names == ("red apple", "rocket")
    assert made.first.tolist() == [0, 2]
    assert made.counts.tolist() == [2, 3]
    rockets = made.where(lambda code: code == "1f680")
    assert rockets.names == ("rocket",)
    assert np.array_equal(rockets.frames[rockets.first[0] :].numpy(), clip(3))


def test_skin_tones_share_their_odds():
    codes = ["1f680", "1f44b-1f3fb", "1f44b-1f3fc", "1f44b-1f3fd", "1f44b-1f3fe"]
    made = Sprites.of({code: clip(1) for code in codes})
    drawn = np.bincount(made.draw(np.random.default_rng(0), 30_000), minlength=5) / 30_000
    assert drawn[made.codes.index("1f680")] == pytest.approx(1 / 3, abs=0.02)

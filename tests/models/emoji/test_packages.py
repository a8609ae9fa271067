import hashlib
import os
import stat

import pytest

from planner.errors import DamagedFile, DownloadFailed, MissingDependency
from planner.models.emoji.data.packages import ANIMATIONS, IMAGES, Package, cache_folder, fetch

CONTENT = b"an archive"
PACKAGE = Package("@scope/name", "1.0.0", 1, hashlib.sha512(CONTENT).hexdigest())


def npm(tmp_path, script):
    """Make a stand-in for npm: a shell script that gets npm's arguments."""
    path = tmp_path / "bin" / "npm"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_an_archive_is_downloaded_once(tmp_path):
    program = npm(tmp_path, f"echo call >> {tmp_path}/calls\nprintf 'an archive' > scope-name-1.0.0.tgz")
    cache = tmp_path / "cache"
    first, second = fetch(PACKAGE, cache, program), fetch(PACKAGE, cache, program)
    assert first == second == cache / "scope-name-1.0.0.tgz"
    assert first.read_bytes() == CONTENT
    assert (tmp_path / "calls").read_text() == "call\n"
    assert os.listdir(cache) == ["scope-name-1.0.0.tgz"]


def test_offline_says_what_npm_said_and_leaves_nothing(tmp_path):
    program = npm(tmp_path, "printf 'half' > scope-name-1.0.0.tgz\necho 'ENOTFOUND registry' >&2\nexit 1")
    with pytest.raises(DownloadFailed, match=r"@scope/name@1\.0\.0.*\n.*ENOTFOUND registry"):
        fetch(PACKAGE, tmp_path / "cache", program)
    assert os.listdir(tmp_path / "cache") == []


def test_a_damaged_download_never_enters_the_cache(tmp_path):
    program = npm(tmp_path, "printf 'an archi' > scope-name-1.0.0.tgz")
    with pytest.raises(DamagedFile, match=r"scope-name-1\.0\.0\.tgz is damaged"):
        fetch(PACKAGE, tmp_path / "cache", program)
    assert os.listdir(tmp_path / "cache") == []


def test_a_cached_archive_that_was_damaged_is_refused_and_kept(tmp_path):
    path = tmp_path / PACKAGE.archive
    path.write_bytes(b"other")
    with pytest.raises(DamagedFile):
        fetch(PACKAGE, tmp_path)
    assert path.read_bytes() == b"other"


def test_without_npm_it_says_so(tmp_path):
    with pytest.raises(MissingDependency, match=r"Install Node\.js"):
        fetch(PACKAGE, tmp_path, "no-such-npm")


def test_archives_have_names_of_their_own():
    assert len({package.archive for package in (IMAGES, *ANIMATIONS)}) == 5


def test_the_cache_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAT_PLANNER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GRAT_PLANNER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "grat-planner"

import multiprocessing
import os
import stat
import subprocess
import sys

import pytest

from planner.plan.atomic_write import replacing, write_text

NO_SPACE = OSError(28, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "plan.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as scratch:
        scratch.write_text("half" + chr(0xD800), encoding="utf-8")
    assert path.read_text() == "old"
    write_text(path, "new – whole")
    assert path.read_text(encoding="utf-8") == "new – whole"
    assert names(tmp_path) == ["plan.json"]


def test_writers_that_go_by_the_suffix_see_the_suffix(tmp_path):
    with replacing(tmp_path / "grid.webp") as scratch:
        assert scratch.name == "grid.webp"
        assert scratch.parent.parent == tmp_path
        scratch.write_bytes(b"")


@pytest.mark.parametrize(("fails_at", "kept"), [(1, "old"), (2, "new")])
def test_a_failing_fsync_leaves_one_whole_file_and_nothing_else(tmp_path, monkeypatch, fails_at, kept):
    """The first call is for the file, the second for the folder in which it is by then."""
    path, calls = tmp_path / "plan.json", []

    def fsync(descriptor):
        calls.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if len(calls) == fails_at:
            raise NO_SPACE

    path.write_text("old")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert calls == [False, True][:fails_at]
    assert path.read_text() == kept
    assert names(tmp_path) == ["plan.json"]


def test_a_failing_replace_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def replace(source, target):
        raise NO_SPACE

    path = tmp_path / "plan.json"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["plan.json"]


def test_a_folder_that_is_not_there_is_named_by_the_file(tmp_path):
    path = tmp_path / "absent" / "plan.json"
    with pytest.raises(FileNotFoundError) as error:
        write_text(path, "new")
    assert str(error.value) == f"[Errno 2] No such file or directory: '{path}'"


def test_modes_are_those_of_new_files_or_private(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "shared", "")
        with replacing(tmp_path / "private", private=True) as scratch:
            scratch.write_text("")
            assert stat.S_IMODE(scratch.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def _write_again_and_again(path, letter, barrier):
    barrier.wait()
    for _ in range(50):
        write_text(path, letter * 100_000)


def test_of_two_processes_that_write_one_path_the_last_one_wins_whole(tmp_path):
    context, path = multiprocessing.get_context("fork"), tmp_path / "plan.json"
    barrier = context.Barrier(3)
    writers = [context.Process(target=_write_again_and_again, args=(path, letter, barrier)) for letter in "ab"]
    for writer in writers:
        writer.start()
    barrier.wait()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen | {path.read_text()} <= {"a" * 100_000, "b" * 100_000}
    assert names(tmp_path) == ["plan.json"]


KILLED = """
import os, sys, time
from planner.plan.atomic_write import write_text
def hang(*args):
    print("there", flush=True)
    time.sleep(60)
os.replace = hang
write_text(sys.argv[1], "new")
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "there\n"
    child.kill()
    child.wait()
    assert path.read_text() == "old"
    write_text(path, "newer")
    assert path.read_text() == "newer"

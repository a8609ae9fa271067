import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from planner.runtime.kernels.private_folder import CannotLock, cache_folder, locked, why_unsafe


def test_the_folder_is_where_the_user_or_the_system_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANNER_CACHE_DIR", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("PLANNER_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "planner" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "planner" / "kernels"


def test_one_thread_holds_a_lock_at_a_time(tmp_path):
    inside, most = [], []

    def work():
        with locked(tmp_path / "a.kernel"):
            inside.append(None)
            most.append(len(inside))
            threading.Event().wait(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]
    assert why_unsafe(tmp_path / "a.lock") is None


HOLDS = """
import pathlib, sys, time
from planner.runtime.kernels.private_folder import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_released_when_its_holder_is_killed(tmp_path):
    path = tmp_path / "a.kernel"
    child = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    got = threading.Event()

    def wait():
        with locked(path):
            got.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert not got.wait(0.3)
    child.kill()
    child.wait()
    assert got.wait(10)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_said_to_have_none(tmp_path, monkeypatch, code):
    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CannotLock, match=rf"a\.lock cannot be locked \({os.strerror(code)}\)"), locked(tmp_path / "a"):
        pass


def test_a_lock_in_no_folder_or_behind_a_link_cannot_be_had(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotLock, match="cannot be locked"), locked(tmp_path / "file" / "a.kernel"):
        pass
    (tmp_path / "b.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CannotLock, match="cannot be locked"), locked(tmp_path / "b.kernel"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_who_may_own_a_file(tmp_path, monkeypatch):
    path = tmp_path / "a.kernel"
    path.write_text("")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert why_unsafe(path) == f"it belongs to user {owner}, and this is user {owner + 1}"
    assert why_unsafe(path, trusted=(owner,)) is None

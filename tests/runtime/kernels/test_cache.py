import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_specs import SMALL, SPECS

from planner.codegen.spec.config import KernelConfig
from planner.errors import BadBundle, BadOption, UnsafeCache
from planner.plan.atomic_write import SCRATCH_PREFIX, SCRATCH_SUFFIX
from planner.runtime.kernels import cache as cache_module
from planner.runtime.kernels.bundle import Bundle, write_bundle
from planner.runtime.kernels.cache import Cache, CacheWarning, build, key_of
from planner.runtime.kernels.kernel_file import FORMAT, KernelFile

OTHER = replace(SMALL, heads=12, kv_heads=12)


@pytest.fixture(scope="module")
def kernel():
    return build(SMALL)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "kernels")


@pytest.fixture
def compiled(monkeypatch, kernel):
    """Specs in the order in which they are compiled; compiling is replaced, so that it takes no time."""
    specs = []

    def pretend(spec):
        specs.append(spec)
        return replace(kernel, emitted=replace(kernel.emitted, spec=spec))

    monkeypatch.setattr(cache_module, "build", pretend)
    return specs


def only(cache):
    (entry,) = cache.entries()
    return entry.path


@pytest.mark.parametrize("name", ["hopper_hunyuan_ragged", "triton_any_group"])
def test_kernel_files_read_back(name):
    made = build(SPECS[name])
    assert KernelFile.from_bytes(made.to_bytes()) == made


def test_a_kernel_is_compiled_once(cache, compiled):
    first = cache.get(SMALL)
    assert cache.get(SMALL) == first
    assert Cache(cache.directory).get(SMALL) == first
    assert compiled == [SMALL]
    assert cache.fault(cache.entries()[0]) is None


def test_versions_live_side_by_side(cache, compiled, monkeypatch):
    cache.get(SMALL)
    monkeypatch.setattr(cache_module, "toolchain", lambda: {"planner": "0", "triton": "9", "code": "x"})
    cache.get(SMALL)
    assert len(compiled) == len(cache.entries()) == 2


def damages():
    def flip(at):
        def damage(content):
            changed = bytearray(content)
            changed[at] ^= 1
            return bytes(changed)

        return damage

    yield from [("a flipped bit in the code", flip(-5)), ("a flipped bit in the header", flip(60))]
    yield from [("half a file", lambda content: content[: len(content) // 2]), ("nothing", lambda content: b"")]
    yield "no header", lambda content: b"\x00" * 5000
    yield "another format", lambda content: content.replace(b'"planner_kernel": %d' % FORMAT, b'"planner_kernel": 1')
    yield "no kernel", lambda content: b'{"planner_kernel": 2, "kernel": [], "sha256": ""}\n'
    yield "deep JSON", lambda content: b"[" * 100_000 + b"\n"


@pytest.mark.parametrize(("name", "damage"), damages())
def test_damaged_files_are_compiled_anew_with_a_warning(cache, compiled, name, damage):
    good = cache.get(SMALL)
    path = only(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.fault(cache.entries()[0])
    with pytest.warns(CacheWarning, match="damaged"):
        assert cache.get(SMALL) == good
    assert len(compiled) == 2
    assert cache.fault(cache.entries()[0]) is None


def test_a_file_under_the_wrong_name_is_not_used(cache, compiled):
    cache.get(SMALL)
    wrong = only(cache).read_bytes()
    cache.clear()
    cache.get(OTHER)
    only(cache).write_bytes(wrong)
    with pytest.warns(CacheWarning, match="another kernel"):
        assert cache.get(OTHER).emitted.spec == OTHER


def test_what_others_could_have_written_is_refused(cache, compiled, tmp_path):
    cache.get(SMALL)
    path = only(cache)
    path.chmod(0o666)
    with pytest.raises(UnsafeCache, match="lets other users write"):
        cache.get(SMALL)
    path.chmod(0o600)
    cache.directory.chmod(0o777)
    with pytest.raises(UnsafeCache, match="lets other users write"):
        cache.get(SMALL)
    cache.directory.chmod(0o700)
    target = tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    with pytest.raises(UnsafeCache, match="symbolic link"):
        cache.get(SMALL)


def test_what_belongs_to_another_user_is_refused(cache, compiled, monkeypatch):
    cache.get(SMALL)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UnsafeCache, match="this is user 12345"):
        cache.get(SMALL)


def test_directories_are_made_for_their_owner_alone(cache, compiled):
    cache.get(SMALL)
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(only(cache).stat().st_mode) == 0o600


@pytest.mark.parametrize("step", ["mkdir", "replace", "fsync", "open"])
def test_a_full_or_read_only_disk_keeps_kernels_in_memory(cache, compiled, monkeypatch, step):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    cache.directory.mkdir(mode=0o700)
    monkeypatch.setattr(os, step, fail)
    with pytest.warns(CacheWarning, match="kept in memory only"):
        assert cache.get(SMALL).emitted.spec == SMALL
    assert cache.entries() == []
    assert not list(cache.directory.glob("*.tmp"))


def test_a_disk_without_locks_keeps_kernels_in_memory(cache, compiled, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(CacheWarning, match=r"cannot be locked \(Function not implemented\); .* in memory only"):
        assert cache.get(SMALL).emitted.spec == SMALL
    assert cache.entries() == []


def test_a_directory_that_cannot_be_made(tmp_path, compiled):
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheWarning, match="cannot be made"):
        assert Cache(tmp_path / "file" / "kernels").get(SMALL).emitted.spec == SMALL


def test_the_kernels_used_longest_ago_make_room(cache, compiled):
    specs = [replace(SMALL, heads=heads, kv_heads=heads) for heads in range(1, 6)]
    for number, spec in enumerate(specs[:4]):
        cache.get(spec)
        newest = max((path for path in cache.directory.glob("*.kernel")), key=lambda p: p.stat().st_ctime_ns)
        os.utime(newest, (number + 1, number + 1))
    cache.get(specs[0])  # used again: now the second is the oldest
    size = cache.entries()[0].bytes
    Cache(cache.directory, limit=int(3.5 * size)).get(specs[4])
    compiled.clear()
    for spec in (specs[0], specs[3], specs[4]):
        cache.get(spec)
    assert compiled == []
    cache.get(specs[1])
    assert compiled == [specs[1]]


def test_clear_removes_everything(cache, compiled):
    cache.get(SMALL)
    left = cache.directory / f"{SCRATCH_PREFIX}1234{SCRATCH_SUFFIX}"
    left.mkdir()
    (left / "half.kernel").write_text("by a process that died")
    assert cache.clear() == 1
    assert list(cache.directory.iterdir()) == []
    assert Cache(cache.directory / "absent").clear() == 0


def test_keys_depend_on_all_of_the_spec():
    changes = [
        {"layout": "n:32 | a:32"}, {"batch": 2}, {"heads": 48}, {"kv_heads": 12}, {"keys": 65}, {"head_dim": 24},
        {"dtype": "float16"}, {"arch": 90}, {"num_sms": 1}, {"key_mask": True}, {"returns_lse": True},
        {"config": KernelConfig("triton", 16, 16, 4, 2)}, {"pattern": "neighborhood{group=8}"},
    ]  # fmt: skip
    assert len({key_of(SMALL), *(key_of(replace(SMALL, **change)) for change in changes)}) == len(changes) + 1


def _get(directory, barrier, results):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        barrier.wait()
        results.put(Cache(Path(directory)).get(SMALL).to_bytes())


def test_eight_processes_starting_cold(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_get, args=(tmp_path / "k", barrier, results)) for _ in range(8)]
    for process in processes:
        process.start()
    made = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len(made) == 1
    assert len(Cache(tmp_path / "k").entries()) == 1


KILLED = """
import os, sys, pathlib, time
sys.path[:0] = [{tests!r}]
from kernel_specs import SMALL
from planner.runtime.kernels import cache
def hang(*args):
    print("there", flush=True)
    time.sleep(60)
setattr(cache if {step!r} == "build" else os, {step!r}, hang)
cache.Cache(pathlib.Path({folder!r})).get(SMALL)
"""


@pytest.mark.parametrize("step", ["build", "fsync", "replace"])
def test_a_process_killed_at_any_moment_leaves_nothing_in_the_way(tmp_path, step, compiled):
    folder = tmp_path / "kernels"
    source = KILLED.format(tests=str(Path(__file__).parents[2]), step=step, folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "there\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    start = time.monotonic()
    assert Cache(folder).get(SMALL).emitted.spec == SMALL
    assert time.monotonic() - start < 10
    assert len(Cache(folder).entries()) == 1


def test_bundles_hold_kernels_by_problem(tmp_path, kernel):
    list(write_bundle([SMALL], tmp_path / "b"))
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.get(SMALL.problem) == kernel
    assert bundle.get(OTHER.problem) is None


def test_bundles_that_others_could_have_written_are_refused(tmp_path, kernel):
    folder = tmp_path / "b"
    (path,) = write_bundle([SMALL], folder)
    path.chmod(0o666)
    with pytest.raises(BadBundle, match="lets other users write"):
        Bundle.open(folder)
    path.chmod(0o644)
    folder.chmod(0o777)
    with pytest.raises(BadBundle, match="lets other users write"):
        Bundle.open(folder)
    folder.chmod(0o755)
    assert Bundle.open(folder).get(SMALL.problem) == kernel


def test_limits_that_are_no_numbers_are_named(monkeypatch):
    monkeypatch.setenv("PLANNER_CACHE_BYTES", "1 GiB")
    with pytest.raises(BadOption, match="a number of bytes"):
        Cache()


def test_unusable_bundles_say_why(tmp_path, kernel):
    with pytest.raises(BadBundle, match="It holds no kernel"):
        Bundle.open(tmp_path / "absent")
    path = tmp_path / "x.kernel"
    path.write_bytes(replace(kernel, toolchain={**kernel.toolchain, "code": "other"}).to_bytes())
    with pytest.raises(BadBundle, match="of other code made it"):
        Bundle.open(tmp_path)
    header = json.loads(kernel.to_bytes().split(b"\n", 1)[0])
    path.write_bytes(json.dumps(header).encode() + b"\nother code")
    with pytest.raises(BadBundle, match="Its machine code does not have its digest"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("written", [FORMAT - 1, FORMAT + 1, "2"])
def test_bundles_of_another_format_say_how_they_are_built_anew(tmp_path, kernel, written):
    header, code = kernel.to_bytes().split(b"\n", 1)
    seal = {**json.loads(header), "planner_kernel": written}
    (tmp_path / "x.kernel").write_bytes(json.dumps(seal).encode() + b"\n" + code)
    with pytest.raises(BadBundle) as error:
        Bundle.open(tmp_path)
    assert f"Its format is {written!r}, and this planner reads format {FORMAT} alone." in str(error.value)
    assert "`planner build PLAN -o FOLDER --target TARGET`" in str(error.value)


def test_a_bundle_as_version_0_1_wrote_it_is_refused(tmp_path, kernel):
    header, code = kernel.to_bytes().split(b"\n", 1)
    body = json.loads(header)["kernel"]
    names = {"partial_rows": "part_rows", "retry_flags": "marks", "toolchain": "made_by"}
    body = {names.get(name, name): value for name, value in body.items()}
    spec_names = {"num_sms": "processors", "has_head_table": "tabled"}
    body["spec"] = {spec_names.get(name, name): value for name, value in body["spec"].items() if name != "scales"}
    seal = {"planner_kernel": 2, "sha256": hashlib.sha256(json.dumps(body).encode()).hexdigest(), "kernel": body}
    (tmp_path / "x.kernel").write_bytes(json.dumps(seal).encode() + b"\n" + code)
    with pytest.raises(BadBundle, match="Its format is 2, and this planner reads format"):
        Bundle.open(tmp_path)

import ast
import re
from dataclasses import replace
from pathlib import Path

import golden_sections
import pytest
import triton
from kernel_specs import FLUX, HOPPER, SPECS, problem

from planner.codegen.emit.bodies import emit
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.candidates import candidates, choose_config
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.feasibility import why_not
from planner.errors import BadSpelling, MalformedValue, NoKernel, UnknownName
from planner.runtime.kernels.sass import inspect

GOLDENS = Path(__file__).parents[1] / "goldens"
MEASURED = triton.__version__.startswith("3.6.")
"""Whether this is the compiler whose machine code was read and timed: what it spills is bounded."""

ARCHES = (80, 89, 90, 100, 120)
TENSOR = {80: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}


KINDS = {kind: [name for name in SPECS if name.startswith(f"{kind}_")] for kind in ("hopper", "triton", "means")}
"""The kernels whose goldens lie in one folder."""


@pytest.fixture(scope="module", params=KINDS)
def goldens(request):
    """(kernels of one kind, their goldens), after writing them where that is asked for."""
    folder, kernels = GOLDENS / request.param, KINDS[request.param]
    if request.config.getoption("--update-golden"):
        golden_sections.write(folder, {kernel: emit(SPECS[kernel]).source for kernel in kernels})
    return kernels, golden_sections.read(folder, kernels)


def test_sources_are_the_goldens(goldens):
    """Statement by statement, by section (see golden_sections.py): a changed helper is one difference."""
    kernels, kept = goldens
    for kernel in kernels:
        emitted = golden_sections.statements(emit(SPECS[kernel]).source)
        texts = {section: [text for _, text in found] for section, found in emitted.items()}
        assert texts == kept[kernel], (
            "run pytest --update-golden tests/codegen/emit/test_goldens.py and read the difference"
        )


def test_a_changed_helper_is_one_difference(tmp_path):
    """Kernels that have a function alike share it; other variants stand beside it, and each kernel finds its own."""
    head, one, other = (
        "# ==== Part ====\n# What it is.\n\nA = 1\n\n\n",
        "def f():\n    return A\n",
        "def f():\n    return 2\n",
    )
    sources = {"a": head + one, "b": head + one, "c": head + other + "\n\ndef g():\n    pass\n"}
    golden_sections.write(tmp_path, sources)
    assert (tmp_path / "part.py.txt").read_text().count("def f") == 2
    kept = golden_sections.read(tmp_path, ["a", "b", "c"])
    assert kept["a"] == kept["b"] == {"part": ["# ==== Part ====\n# What it is.", "A = 1", one.strip()]}
    assert kept["c"]["part"][-2:] == [other.strip(), "def g():\n    pass"]


@pytest.mark.parametrize("name", SPECS)
def test_sources_read_well(name):
    source = emit(SPECS[name]).source
    module = ast.parse(source)
    assert SPECS[name].pattern in source.splitlines()[0]
    assert "__future__" not in source
    assert "\n\n\n\n" not in source
    assert all(line == line.rstrip() for line in source.splitlines())
    defined = [node.name for node in module.body if isinstance(node, ast.FunctionDef)]
    used = {node.id for node in ast.walk(module) if isinstance(node, ast.Name)}
    assert all(function in used or function == "attention" for function in defined)
    assert all(ast.get_docstring(node) for node in module.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("name", SPECS)
def test_goldens_compile_for_their_target(name):
    facts = inspect(SPECS[name])
    assert facts.programs >= 1
    assert facts.warnings == ()
    assert SPECS[name].only_means or facts.tensor
    assert SPECS[name].only_means or facts.copies
    # The warp that finds keys of several patterns has more to do than 24 registers hold, and four warpgroups need more
    # once a query tile than theirs; the latter, measured, costs nothing (bench/EXPERIMENTS.md).
    has_one = len(SPECS[name].patterns) == 1
    is_plain = has_one and not SPECS[name].mean_rows
    of_hopper = 512 if not has_one else 256 if SPECS[name].config.block_m == 256 else 64
    assert facts.spills <= (of_hopper if "hopper" in name else 64 if is_plain else 320) or not MEASURED


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_target_multiplies_on_tensor_cores_and_copies_while_it_does(arch, head_dim):
    asked = problem(FLUX, "crisscross{axes=lines,group=16x16}", arch=arch, head_dim=head_dim)
    facts = inspect(make_spec(asked, choose_config(asked)))
    assert dict(facts.tensor).get(TENSOR[arch])
    assert dict(facts.copies).get("TMA" if arch == 90 else "cp.async")
    # The Hopper body keeps in local memory what it needs once a query tile, not what it needs at every key tile.
    assert facts.spills <= ({64: 256, 128: 16}[head_dim] if arch == 90 else 0) or not MEASURED
    assert facts.warnings == ()


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "tf32"])
@pytest.mark.parametrize("head_dim", [64, 72, 80, 88, 96, 128, 256])
def test_every_head_dimension_has_a_config_on_every_target(arch, dtype, head_dim):
    asked = problem(FLUX, "neighborhood{group=16x16}", arch=arch, dtype=dtype, head_dim=head_dim)
    assert all(why_not(config, asked) is None for config in candidates(asked))
    assert emit(make_spec(asked, choose_config(asked))).grid > 0


WHY_NOT = [
    ({"arch": 100}, {}, "its instructions are those of SM90, not of SM100"),
    ({"dtype": "float32", "head_dim": 64}, {}, "it multiplies bfloat16 and float16"),
    ({"head_dim": 256}, {}, "heads of 256 channels do not make tiles"),
    ({"head_dim": 32}, {}, "heads of 32 channels do not make tiles of 64 or 128"),
    ({"pattern": "neighborhood{group=8x8}"}, {}, "groups of 8x8 are not made of whole boxes of 128 tokens"),
    ({"arch": 75}, {}, "nothing is known of compute capability 75"),
    ({}, {"block_n": 96}, "are not powers of two"),
    ({}, {"block_m": 64}, "it has tiles of 128 queries"),
    ({}, {"block_m": 256}, "or of 256 queries and 64 keys of up to 64 channels"),
    (
        {"head_dim": 64, "pattern": "neighborhood{group=8x16}"},
        {"block_m": 256, "block_n": 64},
        "whole boxes of 256 tokens",
    ),
    ({}, {"stages": 3}, "two tiles of keys and two of values in flight at least"),
    ({}, {"stages": 6}, "it needs .* bytes of shared memory and SM90 has 232448"),
    ({}, {"warps": 5}, "5 warps and 4 stages are not possible"),
    ({}, {"stages": 17}, "4 warps and 17 stages are not possible"),
]


@pytest.mark.parametrize(("changes", "config", "reason"), WHY_NOT)
def test_why_not_says_why(changes, config, reason):
    asked = problem(**{"layout": FLUX, "pattern": "crisscross{axes=lines,group=16x16}"} | changes)
    chosen = replace(KernelConfig.parse(HOPPER), **config)
    assert why_not(KernelConfig.parse(HOPPER), problem(FLUX, "neighborhood{group=16x16}")) is None
    found = why_not(chosen, asked)
    assert found is not None
    assert re.search(reason, found)
    with pytest.raises(NoKernel):
        emit(make_spec(asked, chosen))


def test_a_body_that_there_is_not_is_named():
    asked, config = problem(FLUX, "neighborhood{group=16x16}"), KernelConfig("sm91", 128, 128, 4, 4)
    assert why_not(config, asked) == "there is no kernel body 'sm91', but means, pairs, sm90, triton"
    with pytest.raises(UnknownName, match="Did you mean 'sm90'"):
        make_spec(asked, config)


def test_configs_parse_back():
    for text in (HOPPER, "triton{m=64,n=32,warps=4,stages=1}"):
        assert str(KernelConfig.parse(text)) == text
    for text in ("sm90", HOPPER + " ", "sm90{m=99999,n=1,warps=1,stages=1}"):
        with pytest.raises(BadSpelling):
            KernelConfig.parse(text)


MALFORMED = [
    {"head_dim": 20}, {"heads": 0}, {"heads": 24, "kv_heads": 7}, {"keys": 5},
]  # fmt: skip


@pytest.mark.parametrize("change", MALFORMED)
def test_malformed_problems_are_named(change):
    with pytest.raises(MalformedValue):
        problem(FLUX, "crisscross{axes=lines,group=16x16}", **change)

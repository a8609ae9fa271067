"""Kernel bodies: a registry that others can add to, and what follows from an entry."""

from dataclasses import replace

import pytest
from kernel_specs import FLUX, SPECS, problem

from planner.codegen.emit.bodies import emit
from planner.codegen.emit.triton import TritonBody
from planner.codegen.spec.body import BODIES, make_spec
from planner.codegen.spec.candidates import candidates, choose_config
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.feasibility import why_not
from planner.errors import NoKernel
from planner.runtime.kernels.cache import build
from planner.runtime.kernels.emission_digest import ROOT, _registered, emission_files

CROSS = problem(FLUX, "crisscross{axes=lines,group=16x16}")


class SmallBody(TritonBody):
    """Triton's, with tiles of 16 queries and keys, of sequences that are not long."""

    name, order = "small", 0

    def why_not(self, config, problem):
        return "it serves 1024 tokens at most" if problem.queries > 1024 else super().why_not(config, problem)

    def candidates(self, problem):
        yield KernelConfig(self.name, 16, 16, 4, 1)

    def emit(self, spec):
        return replace(super().emit(spec), source="# small\n" + super().emit(spec).source)


@pytest.fixture
def small(monkeypatch):
    """Register a body for the time of a test."""
    monkeypatch.setattr(BODIES, "_entries", dict(BODIES.items()))
    choose_config.cache_clear()
    yield BODIES.register("small")(SmallBody())
    choose_config.cache_clear()


def test_the_fastest_bodies_come_first():
    bodies = list(dict.fromkeys(config.body for config in candidates(CROSS)))
    assert bodies == ["sm90", "triton"]
    small_groups = problem(FLUX, "neighborhood{radius=1,edge=clamp,group=8x8}")
    assert next(iter(candidates(small_groups))).body == "pairs"
    (means,) = problem(FLUX, "crisscross{axes=lines,group=16x16,pooled=mean}").means_read.values()
    assert {config.body for config in candidates(means)} == {"means"}


def test_a_spec_knows_whether_its_body_pairs_groups():
    paired = {name for name, spec in SPECS.items() if spec.paired}
    assert paired == {"hopper_pairs", "hopper_pairs_rules"}
    assert all(make_spec(spec.problem, spec.config) == spec for spec in SPECS.values())


def test_a_body_that_is_added_is_chosen_where_it_can_serve(small):
    asked = problem("h:16 w:16", "crisscross{axes=lines,group=4x4}", heads=1, head_dim=16, arch=80)
    config = choose_config(asked)
    assert config == KernelConfig("small", 16, 16, 4, 1)
    spec = make_spec(asked, config)
    assert emit(spec).source.startswith("# small\n")
    assert build(spec).binary.code[:4] == b"\x7fELF"
    assert choose_config(CROSS).body == "sm90"
    assert why_not(config, CROSS) == "it serves 1024 tokens at most"
    with pytest.raises(NoKernel, match="It serves 1024 tokens at most"):
        emit(make_spec(CROSS, config))


def test_no_body_that_can_serve_leaves_each_ones_reason(small):
    with pytest.raises(NoKernel) as error:
        choose_config(replace(CROSS, dtype="float16{k=float32}"))
    assert str(error.value) == (
        "NoKernel: there is no kernel for crisscross{axes=lines,group=16x16} on text:512 | h:64 w:64.\n"
        "  Small: it serves 1024 tokens at most; sm90 and pairs: its queries, keys, values and output are of one type; "
        "triton: keys of float32 would be rounded to float16, which queries are multiplied as.\n"
        "  Plan for another target, or leave this site dense."
    )


def test_the_code_of_bodies_is_part_of_the_kernel_caches_key(small):
    files = {path.relative_to(ROOT).as_posix() for path in emission_files()}
    assert {"codegen/emit/triton.py", "codegen/emit/group_means.py", "codegen/emit/hopper/body.py"} <= files
    assert type(small).__module__ in _registered()

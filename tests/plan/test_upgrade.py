"""Files that older versions wrote, as they wrote them."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from planner.errors import BadEvidence, BadPlanFile
from planner.plan.evidence import Evidence
from planner.plan.options import Options
from planner.plan.plan import Plan
from planner.plan.quality import Certificate
from planner.plan.upgrade import EVIDENCE_VERSION, PLAN_VERSION

PLAN_1 = """{
 "version": 1, "model": "Model", "inputs": "x=1x4112x64 bfloat16", "target": "h100",
 "options": {"pattern": "crisscross", "group": "16x16", "density": null, "speedup": null, "min_speedup": 0.0,
  "layout": null},
 "decisions": [
  {"site": "blocks.0.attn", "layout": "text:16 | h:64 w:64", "batch": 1, "heads": 2, "kv_heads": 2, "queries": 4112,
   "keys": 4112, "head_dim": 64, "dtype": "bfloat16", "pattern": "crisscross{axes=lines,group=16x16}",
   "reason": "keeps the most of what beats dense attention", "density": 0.4418689155021272, "flops": 3825336320,
   "seconds": 1.772004599019989e-05, "dense_flops": 8657174528, "dense_seconds": 2.3466865564284047e-05},
  {"site": "blocks.0.cross", "layout": "h:64 w:64", "batch": 1, "heads": 2, "kv_heads": 2, "queries": 4096, "keys": 16,
   "head_dim": 64, "dtype": "bfloat16", "pattern": "dense", "reason": "cross-attention: keys are text:16",
   "density": 1.0, "flops": 33554432, "seconds": 1.0628460895522387e-05, "dense_flops": 33554432,
   "dense_seconds": 1.0628460895522387e-05}],
 "other_flops": 1000000000, "other_seconds": 0.0001
}"""

PLAN_2 = """{
 "version": 2, "model": "Model", "inputs": "x=1x4112x64 bfloat16", "target": "h100",
 "options": {"pattern": "crisscross", "group": "16x16", "density": null, "speedup": null, "min_speedup": 0.0,
  "layout": null, "sparse_below": 0.75, "noise": null},
 "decisions": [
  {"site": "blocks.0.attn", "layout": "text:16 | h:64 w:64", "batch": 1, "heads": 2, "kv_heads": 2, "queries": 4112,
   "keys": 4112, "head_dim": 64, "dtype": "bfloat16", "pattern": "crisscross{axes=lines,group=16x16}",
   "sparse_below": 0.75, "reason": "keeps the most of what beats dense attention", "density": 0.4418689155021272,
   "flops": 3825336320, "seconds": 1.6e-05, "dense_flops": 8657174528, "dense_seconds": 2.4e-05},
  {"site": "blocks.0.cross", "layout": "h:64 w:64", "batch": 1, "heads": 2, "kv_heads": 2, "queries": 4096, "keys": 16,
   "head_dim": 64, "dtype": "bfloat16", "pattern": "dense", "sparse_below": 1.0,
   "reason": "cross-attention: keys are text:16", "density": 1.0, "flops": 33554432,
   "seconds": 1.0628460895522387e-05, "dense_flops": 33554432, "dense_seconds": 1.0628460895522387e-05}],
 "noise": "timestep/1000", "other_flops": 1000000000, "other_seconds": 0.0001
}"""

PLAN_3 = """{
 "version": 3, "model": "Model", "inputs": "x=1x4112x64 bfloat16", "target": "h100",
 "options": {"pattern": "crisscross{far=mean}", "group": "16x16", "density": null, "speedup": null, "min_speedup": 0.0,
  "layout": null, "sparse_below": 0.75, "noise": null, "alternate_offsets": false},
 "decisions": [
  {"site": "blocks.0.attn", "layout": "text:16 | h:64 w:64", "batch": 1, "heads": 2, "kv_heads": 2, "queries": 4112,
   "keys": 4112, "head_dim": 64, "dtype": "bfloat16",
   "pattern": "crisscross{axes=lines,group=16x16,far=mean}[noise=0:0.75]; dense[noise=0.75:1]",
   "reason": "keeps the most of what beats dense attention", "density": 0.5843086193583551, "flops": 5058461696,
   "seconds": 2.6282118327376614e-05, "dense_flops": 8657174528, "dense_seconds": 2.3466865564284047e-05},
  {"site": "blocks.0.cross", "layout": "h:64 w:64", "batch": 1, "heads": 2, "kv_heads": 2, "queries": 4096, "keys": 16,
   "head_dim": 64, "dtype": "bfloat16", "pattern": "dense",
   "reason": "below break-even: 0.52x of dense (crisscross{axes=lines,group=8x8,far=mean})", "density": 1.0,
   "flops": 33554432, "seconds": 1.0628460895522387e-05, "dense_flops": 33554432,
   "dense_seconds": 1.0628460895522387e-05}],
 "noise": "timestep/1000", "other_flops": 1000000000, "other_seconds": 0.0001,
 "certificate": {"metric": "psnr", "asked": 20.0, "cases": ["a cat, seed 0", "a cat, seed 1", "a dog, seed 0"],
  "values": [21.5, 22.0, 23.25], "made_by": "planner 0.1.0, torch 2.9.0, h100", "date": "2026-11-28"}
}"""

GATE = "[noise=0:0.75]; dense[noise=0.75:1]"


def test_version_1_says_the_same_today():
    plan = Plan.from_json(PLAN_1)
    assert (plan.version, plan.noise, plan.certificate) == (PLAN_VERSION, None, None)
    assert plan.options == Options(pattern="crisscross", group="16x16", min_speedup=0.0)
    sparse, dense = plan.decisions
    assert (sparse.pattern, sparse.flops) == ("crisscross{axes=lines,group=16x16}", 3825336320)
    assert (sparse.density, sparse.seconds) == (0.4418689155021272, 1.772004599019989e-05)
    assert (dense.pattern, dense.reason) == ("dense", "cross-attention: keys are text:16")


def test_gates_of_version_2_are_rules_and_count_in_costs():
    plan = Plan.from_json(PLAN_2)
    assert (plan.version, plan.noise, plan.options.sparse_below) == (PLAN_VERSION, "timestep/1000", 0.75)
    sparse, dense = plan.decisions
    assert sparse.pattern == "crisscross{axes=lines,group=16x16}" + GATE
    assert sparse.density == pytest.approx(0.75 * 0.4418689155021272 + 0.25)
    assert sparse.flops == 0.75 * 3825336320 + 0.25 * 8657174528
    assert sparse.seconds == pytest.approx(1.8e-05)
    assert (dense.pattern, dense.seconds) == ("dense", 1.0628460895522387e-05)


def test_version_2_got_alternate_offsets_late():
    late = json.loads(PLAN_2)
    late["options"]["alternate_offsets"] = True
    assert Plan.from_json(json.dumps(late)).options.alternate_offsets
    assert not Plan.from_json(PLAN_2).options.alternate_offsets


def test_version_3_is_spelled_as_today():
    plan = Plan.from_json(PLAN_3)
    assert plan.version == PLAN_VERSION
    assert plan.options.pattern == "crisscross{pooled=mean}"
    assert plan.decisions[0].pattern == "crisscross{axes=lines,group=16x16,pooled=mean}" + GATE
    assert plan.decisions[1].reason.endswith("(crisscross{axes=lines,group=8x8,pooled=mean})")
    assert plan.certificate == Certificate(
        *("psnr", 20.0, ("a cat, seed 0", "a cat, seed 1", "a dog, seed 0"), (21.5, 22.0, 23.25)),
        *("planner 0.1.0, torch 2.9.0, h100", "2026-11-28"),
    )


def test_version_3_got_certificates_late():
    early = json.loads(PLAN_3)
    del early["certificate"]
    assert Plan.from_json(json.dumps(early)) == replace(Plan.from_json(PLAN_3), certificate=None)


@pytest.mark.parametrize("text", [PLAN_1, PLAN_2, PLAN_3])
def test_an_old_plan_is_written_as_one_of_today(text):
    plan = Plan.from_json(text)
    written = plan.to_json()
    assert Plan.from_json(written) == plan
    assert json.loads(written)["version"] == PLAN_VERSION
    assert "far=" not in written
    assert "made_by" not in written


def test_old_names_of_fields_are_read_in_files_of_today_too():
    written = Plan.from_json(PLAN_3).to_json()
    assert Plan.from_json(written.replace("pooled=", "far=")).to_json() == written
    assert Options(pattern="crisscross{ far = mean }").pattern == "crisscross{ pooled = mean }"


def changed(text, where, **changes):
    data = json.loads(text)
    record = data if where is None else data["decisions"][0] if where == "decisions" else data[where]
    record.update(changes)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"version": 1}', "'options' is missing, which files of version 1 have"),
        ('{"version": 3}', "the fields of a Plan are"),
        (changed(PLAN_1, None, decisions=7), "'decisions' is not a list"),
        (changed(PLAN_1, None, decisions=[[]]), "it does not have the fields of version 1"),
        (changed(PLAN_1, "decisions", toolchain="x"), "'toolchain' is none of them, at decisions[0]"),
        (changed(PLAN_2, None, decisions=[{}]), "'sparse_below' is missing, which files of version 2 have"),
        (changed(PLAN_2, "decisions", sparse_below=1.5), "sparse_below is 1.5"),
        (changed(PLAN_2, "decisions", sparse_below=True), "sparse_below is True"),
        (changed(PLAN_2, "decisions", flops="many"), "it does not have the fields of version 2"),
        (changed(PLAN_2, "decisions", flops=10**400), "it does not have the fields of version 2"),
        (changed(PLAN_2, "decisions", pattern=7), "it does not have the fields of version 2"),
        (changed(PLAN_2, "decisions", pattern="cross"), "there is no pattern 'cross'"),
        (changed(PLAN_2, None, noise=None), "nothing tells the noise level"),
        (changed(PLAN_3, None, certificate="good"), "it does not have the fields of version 3"),
        (changed(PLAN_3, None, certificate={}), "'made_by' is missing, which files of version 3 have"),
    ],
)
def test_what_no_old_version_wrote_is_refused(text, fault):
    with pytest.raises(BadPlanFile) as error:
        Plan.from_json(text)
    assert fault in str(error.value)


DENSE = changed(PLAN_1, "decisions", pattern="dense", density=1.0, flops=8657174528, seconds=2.3466865564284047e-05)
SITE, CANDIDATES = (
    "blocks.0.attn",
    ["crisscross{axes=lines,group=16x16}", "crisscross{axes=lines,group=16x16,far=mean}"],
)


def old_evidence(path, **changes):
    """Evidence of version 1, one call of a site of two heads with two candidates."""
    tables = {"recall": (1, 2, 2), "error": (1, 2, 2), "power": (1, 2), "sensitivity": (1,)}
    tensors = {f"{SITE}/{name}": torch.full(shape, 0.5) for name, shape in tables.items()}
    tensors |= {"steps": torch.tensor([1.0], dtype=torch.float64), "recorded": torch.tensor([0])}
    described = {"version": 1, "plan": json.loads(DENSE), "candidates": {SITE: CANDIDATES}}
    described |= {"made_by": {"torch": "2.9.0", "device": "cuda", "date": "2026-11-28"}, **changes}
    save_file(tensors, path, {"evidence": json.dumps(described)})
    return path


def test_old_evidence_is_spelled_as_today(tmp_path):
    evidence = Evidence.load(old_evidence(tmp_path / "old"))
    pooled = "crisscross{axes=lines,group=16x16,pooled=mean}"
    assert evidence.sites[SITE].candidates == ("crisscross{axes=lines,group=16x16}", pooled)
    assert evidence.plan.version == PLAN_VERSION
    assert evidence.toolchain == {"torch": "2.9.0", "device": "cuda", "date": "2026-11-28"}
    evidence.save(tmp_path / "new")
    loaded = Evidence.load(tmp_path / "new")
    assert (loaded.plan, loaded.toolchain) == (evidence.plan, evidence.toolchain)
    with safe_open(tmp_path / "new", "pt") as file:
        written = json.loads(file.metadata()["evidence"])
    assert written["version"] == EVIDENCE_VERSION
    assert written["candidates"][SITE][1] == pooled


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"version": 3}, "The file says version 3; this planner reads versions 1 to 2"),
        ({"plan": None}, "It has no version"),
        ({"candidates": {SITE: "crisscross"}}, r"\"candidates\['blocks.0.attn'\]\" is not a list"),
        ({"candidates": {SITE: ["far=mean"]}}, "cannot read"),
        ({"made_by": {"torch": 2}}, "is no str in range"),
        ({"extra": 1}, "'extra' is none of them"),
    ],
)
def test_what_is_no_evidence_is_refused_with_its_place(tmp_path, changes, fault):
    with pytest.raises(BadEvidence, match=fault):
        Evidence.load(old_evidence(tmp_path / "old", **changes))

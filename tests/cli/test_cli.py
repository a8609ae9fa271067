import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_specs import problem
from zoo import FAMILIES

import planner.cli
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.config import KernelConfig
from planner.plan.plan import Plan
from planner.runtime.kernels.bundle import Bundle
from planner.runtime.kernels.cache import Cache


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["planner", *map(str, arguments)])
        try:
            planner.cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a small FLUX as a diffusers folder."""
    path = tmp_path_factory.mktemp("model")
    FAMILIES["flux"]()[0].save_config(path)
    return path


@pytest.fixture
def saved(run, folder, tmp_path):
    path = tmp_path / "plan.json"
    assert run("plan", folder, "--size", "1024x1024", "-o", path)[0] == 0
    return path


def test_plan_shows_and_saves(run, folder, tmp_path):
    code, out, _ = run("plan", folder, "--size", "2048x1024", "--target", "h100", "-o", tmp_path / "p.json")
    assert code == 0
    assert "hidden_states[h:64 w:128]" in out
    assert "crisscross{axes=lines,group=16x16}" in out
    assert re.search(r"attention +[\d.]+ +[\d.]+ +[\d.]+x", out)
    assert "\x1b" not in out
    assert Plan.load(tmp_path / "p.json").decisions[0].queries == 512 + 64 * 128


def test_plan_as_json_is_the_plan(run, folder, saved):
    code, out, _ = run("plan", folder, "--size", "1024x1024", "--json")
    assert (code, Plan.from_json(out)) == (0, Plan.load(saved))


def test_show(run, saved):
    code, out, _ = run("show", saved)
    assert code == 0
    assert "single_transformer_blocks.0.attn" in out


def test_explain_draws_the_pattern_and_says_why_others_lost(run, saved):
    code, out, _ = run("explain", saved, "transformer_blocks.0.attn")
    assert code == 0
    assert "crisscross{axes=lines,group=8x8}" in out
    assert "beaten" in out
    assert out.count("Q") == 1 + out.count("around Q")
    assert "  ##Q#" in out
    code, out, _ = run("explain", saved, "transformer_blocks.0.attn", "--json")
    assert json.loads(out)["candidates"][0]["rejected"] is None


def test_explain_prints_the_index_map(run, saved):
    code, out, _ = run("explain", saved, "transformer_blocks.0.attn", "--index-map")
    assert code == 0
    scope = {}
    exec(out[out.index("# crisscross") :], scope)
    assert scope["key_count"](0, 0) == 7
    assert scope["key_group"](1, 2, 0) == (4 * 256, 256)
    as_json = json.loads(run("explain", saved, "transformer_blocks.0.attn", "--index-map", "--json")[1])
    assert as_json["index_map"] == out[out.index("# crisscross") :]


def test_explain_a_video_pattern(run, tmp_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("wan")
    FAMILIES["wan"]()[0].save_config(path)
    made = tmp_path / "plan.json"
    assert run("plan", path, "--size", "512x480", "--frames", "33", "--pattern", "neighborhood", "-o", made)[0] == 0
    _, out, _ = run("explain", made, "blocks.0.attn1")
    assert "groups 3×4×4 (t × h × w)" in out
    assert "t = 1  (the query)" in out or "t = 0 to 2  (the query)" in out
    _, out, _ = run("explain", made, "blocks.0.attn2")
    assert "dense: cross-attention" in out


def test_diff_exits_1_where_plans_differ(run, folder, saved, tmp_path):
    other = tmp_path / "other.json"
    run("plan", folder, "--size", "1024x1024", "--group", "8x8", "-o", other)
    code, out, _ = run("diff", saved, other)
    assert code == 1
    assert "crisscross{axes=lines,group=8x8}" in out
    code, out, _ = run("diff", saved, saved)
    assert (code, out.strip()) == (0, "the plans are the same")
    code, out, _ = run("diff", saved, other, "--json")
    assert {"where": "options", "field": "group", "a": None, "b": "8x8"} in json.loads(out)


def test_models(run):
    code, out, _ = run("models", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)} >= {"flux.1-dev", "hunyuanvideo", "mochi"}
    assert "11.90 B" in run("models")[1]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["plan", "flux.1-def"], "Did you mean 'flux.1-dev'?"),
        (["plan", "flux.1-dev", "--size", "big"], "Write it like 1280x720."),
        (["plan", "flux.1-dev", "--size", "1024x0"], "'1024x0' is not a size"),
        (["plan", "flux.1-dev", "--target", "h10"], "Did you mean 'h100'?"),
        (["plan", "flux.1-dev", "--group", "16by16"], "joined by x"),
        (["plan", "flux.1-dev", "--sparse-below", "2"], "a noise level between 0 (excluded) and 1"),
        (["plan", "flux.1-dev", "--noise", "sigma+1"], "'sigma+1' as a noise level"),
        (["plan", "flux.1-dev", "--pattern", "crisscross{offset=8x8}"], "it names no group"),
        (["plan", "flux.1-dev", "--layout", "text"], "'text' is not NAME:COUNT"),
        (["show", "no-such-plan.json"], "No such file"),
    ],
)
def test_mistakes_go_to_stderr_with_exit_code_2(run, arguments, fault):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert fault in err


def test_explain_suggests_sites(run, saved):
    code, _, err = run("explain", saved, "transformer_blocks.0.atn")
    assert code == 2
    assert "Did you mean 'transformer_blocks.0.attn'?" in err


@pytest.mark.parametrize("code", ["import planner", "import planner.cli.commands", "import planner.models.catalogue"])
def test_starting_imports_no_torch(code):
    check = f"import sys; {code}; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize(
    "module",
    [
        "planner",
        "planner.codegen.tiling.index_map",
        "planner.runtime.model.compiled",
        "planner.runtime.attention.cpu",
        "planner.models.inputs",
    ],
)
def test_every_package_imports_alone(module):
    check = f"import sys, {module}; assert 'triton' not in sys.modules or {module!r}.startswith('planner.runtime')"
    subprocess.run([sys.executable, "-c", check], check=True)


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch, planner, planner.runtime.model.compiled
from planner.runtime.kernels.bundle import Bundle
from planner.runtime.attention.dispatch import attend
x = torch.randn(1, 1, 16, 8)
attend(x, x, x, "h:4 w:4", "crisscross{axes=lines,group=2x2}")
from kernel_specs import SPECS
from planner.errors import MissingDependency
from planner.runtime.kernels.cache import build
try:
    build(SPECS["triton_cross"])
except MissingDependency as error:
    assert "PLANNER_BUNDLE" in str(error)
else:
    raise AssertionError("compiled without Triton")
"""


def test_planned_attention_runs_without_triton():
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=True, cwd=Path(__file__).parents[1])


def test_public_names_are_there():
    check = "import planner; [getattr(planner, name) for name in planner.__all__]"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_kernels_of_a_plan_are_compiled_shown_and_bundled(run, saved, tmp_path):
    code, out, _ = run("kernels", saved, "--target", "h100", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert str(KernelConfig.parse(row["config"])) == row["config"]
    assert dict(map(tuple, row["tensor"]))["wgmma"]
    site = Plan.load(saved).decisions[0].site
    source = run("kernels", saved, "--target", "a100", "--source", site)[1]
    assert source.startswith('"""Attention crisscross{axes=lines,group=16x16}')
    assert "import triton" in source
    code, out, _ = run("build", saved, "--target", "h100", "-o", tmp_path / "bundle")
    assert code == 0
    assert "PLANNER_BUNDLE=" in out
    assert len(Bundle.open(tmp_path / "bundle").kernels) == 1
    assert "wgmma" in run("kernels", saved)[1]


def test_gated_and_shifted_plans_say_so_and_bring_a_dense_kernel(run, folder, tmp_path):
    path = tmp_path / "plan.json"
    options = ("--sparse-below", 0.75, "--alternate-offsets", "-o", path)
    code, out, _ = run("plan", folder, "--size", "1024x1024", *options)
    assert code == 0
    assert "patterns depend on the noise level, timestep" in out
    assert "crisscross{axes=lines,group=16x16,offset=8x8}" in out
    assert Plan.load(path).noise == "timestep"
    code, out, _ = run("explain", path, "single_transformer_blocks.0.attn")
    assert code == 0
    assert "offset=8x8" in out
    assert run("build", path, "--target", "h100", "-o", tmp_path / "bundle")[0] == 0
    asked = Bundle.open(tmp_path / "bundle").kernels
    assert {tuple(pattern.partition("{")[0] for pattern in problem.pattern.split("; ")) for problem in asked} == {
        ("crisscross", "dense")
    }
    assert len(asked) == 2
    assert all(problem.has_head_table for problem in asked)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--target", "cpu"], "target='cpu' is not possible"),
        (["--target", "h10"], "Did you mean 'h100'"),
        (["--source", "nowhere"], "there is no sparse site 'nowhere'"),
    ],
)
def test_kernels_name_mistakes(run, saved, arguments, fault):
    code, _, err = run("kernels", saved, *arguments)
    assert code == 2
    assert fault in err


def test_tuning_needs_a_gpu(run, saved, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = run("autotune", saved)
    assert code == 2
    assert "a CUDA device is needed for tuning" in err


def test_the_cache_is_listed_verified_and_cleared(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PLANNER_CACHE_DIR", str(tmp_path / "kernels"))
    assert "0 kernels" in run("cache", "ls")[1]
    made = Cache().get(make_spec(problem("n:64", "dense", head_dim=16, arch=80), KernelConfig("triton", 16, 16, 4, 1)))
    assert made.emitted.spec.name in run("cache", "ls")[1]
    assert len(json.loads(run("cache", "ls", "--json")[1])) == 1
    assert run("cache", "verify")[:2] == (0, "1 kernels are sound, 0 are not\n")
    (entry,) = Cache().entries()
    entry.path.write_bytes(b"damaged")
    code, out, _ = run("cache", "verify")
    assert code == 1
    assert "it has no header line" in out
    assert run("cache", "clear")[1] == "removed 1 kernels\n"


def test_evidence_is_recorded_tuned_with_drawn_and_explained(run, tmp_path):
    small = ("--size", "32x32", "--steps", 2, "--cases", 3)
    evidence, plan = tmp_path / "evidence.safetensors", tmp_path / "plan.json"
    code, out, _ = run("calibrate", "emoji-flux", *small, "-o", evidence)
    assert (code, "10 sites" in out) == (0, True)
    code, out, _ = run("tune", "emoji-flux", *small, "--psnr", 6, "--evidence", evidence, "-o", plan)
    assert code == 0
    assert "psnr: asked 6, measured" in out
    assert "of cases like them keep" in run("show", plan)[1]
    code, out, _ = run("pareto", evidence, "--target", "cpu", "-o", tmp_path / "pareto.png")
    assert (code, out.count("chosen from evidence")) == (0, 12)
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(run("pareto", evidence, "--target", "cpu", "--json")[1])
    ours = [row for row in rows if row["plan"] == "chosen from evidence"]
    assert [row["error"] for row in ours] == sorted(row["error"] for row in ours)
    site = "transformer_blocks.0.attn"
    code, out, _ = run("explain", plan, site, "--evidence", evidence, "--json")
    scores = json.loads(out)["evidence"]
    assert code == 0
    assert all(0 <= row["worst head"] <= row["recall"] <= 1 for row in scores)
    assert "worst head" in run("explain", plan, site, "--evidence", evidence)[1]
    code, _, err = run("tune", "emoji-flux", *small, "--psnr", 20, "--ssim", 0.9)
    assert (code, "one of psnr, ssim, recall" in err) == (2, True)
    code, _, err = run("tune", "flux.1-dev", "--psnr", 20)
    assert (code, "emoji-flux" in err) == (2, True)
    code, _, err = run("pareto", plan)
    assert (code, "cannot be read" in err) == (2, True)


@pytest.mark.parametrize("asked", ["--version", "version"])
def test_the_version_is_that_of_the_package(run, asked):
    assert run(asked) == (0, f"{planner.__version__}\n", "")


def test_bench_measures_dense_against_planned(run, folder):
    arguments = ("bench", folder, "--size", "256x192", "--group", "4x4", "--min-speedup", "0", "--rounds", "1")
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["speedup"] == pytest.approx(found["dense_seconds"] / found["planned_seconds"])
    assert 0 < found["difference"] < 1
    assert re.search(r"dense [\d.]+ ms, planned [\d.]+ ms, [\d.]+x; outputs differ by", run(*arguments)[1])

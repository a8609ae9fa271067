"""What the two wheels hold, and that every import is of a declared dependency."""

import ast
import re
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "models" / "weights"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

LATER = {
    "diffusers", "matplotlib", "pillow", "safetensors", "sentence-transformers", "tokenizers", "torchmetrics",
    "transformers", "triton",
}  # fmt: skip
"""What only extras bring, or what these need: imported where it is used."""

MACHINE = re.compile(rb"(?<![\w.])/(?:home|root|work|tmp|Users|opt)/|[A-Z]:\\\\")


def wheel(folder, output):
    return Path(next(iter(WheelBuilder(str(folder)).build(directory=str(output), versions=["standard"]))))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    output = tmp_path_factory.mktemp("wheels")
    return {"planner": wheel(ROOT, output), "weights": wheel(WEIGHTS, output)}


def names(path):
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_holds_planner_alone(wheels):
    held = names(wheels["planner"])
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == {"planner"}
    for needed in (
        "py.typed", "codegen/templates/hopper/kernel.py.jinja", "codegen/templates/triton.py.jinja",
        "runtime/model/compiled.py", "models/emoji/sampling.py", "models/families/flux.py", "patterns/crisscross.py",
    ):  # fmt: skip
        assert f"planner/{needed}" in held
    assert not [name for name in held if "weights" in name or name.endswith((".safetensors", ".png", ".webp"))]
    assert wheels["planner"].stat().st_size < 2e6


def test_the_weights_are_a_wheel_of_their_own(wheels):
    held = names(wheels["weights"])
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == {"grat_planner_weights"}
    for model in ("emoji-flux", "emoji-hunyuan"):
        assert f"grat_planner_weights/{model}/transformer/diffusion_pytorch_model.safetensors" in held
        assert f"grat_planner_weights/{model}/evidence.safetensors" in held
    assert any(name.endswith("licenses/LICENSE-fluent-emoji") for name in held)
    assert wheels["weights"].stat().st_size < 100e6


@pytest.mark.parametrize("name", ["planner", "weights"])
def test_no_shipped_file_names_a_machine(wheels, name):
    with zipfile.ZipFile(wheels[name]) as archive:
        texts = [each for each in archive.namelist() if not each.endswith((".safetensors", ".png", ".webp"))]
        assert not {each: MACHINE.search(archive.read(each)) for each in texts if MACHINE.search(archive.read(each))}


def requirements(lines):
    return {re.split(r"[^\w.-]", line)[0].lower() for line in lines} - {PROJECT["name"]}


def imports(path):
    """(top-level module, whether it is imported when its file is) of all imports of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        yield from ((module.split(".")[0], id(node) not in later) for module in modules)


def _is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


SOURCES = [
    path for folder in ("planner", "codegen", "runtime", "models") for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_every_import_is_of_a_declared_dependency():
    plain = requirements(PROJECT["dependencies"])
    extra = set().union(*map(requirements, PROJECT["optional-dependencies"].values())) | LATER
    of_module = packages_distributions()
    for path in SOURCES:
        for module, is_at_once in imports(path):
            if module in sys.stdlib_module_names or module == "planner":
                continue
            known = {each.lower() for each in of_module.get(module, [module])}
            where = f"{path.relative_to(ROOT)} imports {module}"
            assert known & (plain | extra), f"{where}, which nothing declares"
            assert not is_at_once or known & plain or _is_extra_only(path), (
                f"{where} at once, which only an extra brings"
            )


def _is_extra_only(path):
    """Whether a file is imported only where its extra is: models with weights, kernels compiled by Triton."""
    name = path.relative_to(ROOT).as_posix()
    return name.startswith("models/emoji/") or name in ("runtime/kernels/compile.py", "runtime/kernels/sass.py")

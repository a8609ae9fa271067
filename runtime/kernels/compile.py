"""Compiling emitted source: a module file becomes machine code, on any machine, for any target."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import triton.experimental.gluon.language as gl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout

from planner.codegen.spec.body import BODIES
from planner.codegen.spec.dtypes import DTYPES
from planner.codegen.spec.emitted import Emitted, ViewArgument
from planner.runtime.cuda.binary import Binary


def load_module(path: Path, name: str) -> ModuleType:
    """Import an emitted module from its file; Triton reads the source of its functions there."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_emitted(emitted: Emitted) -> Binary:
    """Compile a kernel for its spec's target, on disk only meanwhile; raises what Triton raises."""
    name = emitted.spec.name
    with tempfile.TemporaryDirectory(prefix="planner-") as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(emitted.source)
        return _compile_module(emitted, load_module(path, name), folder)


def _compile_module(emitted: Emitted, module: ModuleType, folder: str) -> Binary:
    """Compile a loaded module; folder: for the files that Triton writes meanwhile."""
    is_gluon = BODIES[emitted.spec.config.body].language == "gluon"
    signature = {a.name: _signature(a, is_gluon) for a in emitted.arguments}
    aligned = {(at,): [["tt.divisibility", a.divisor]] for at, a in enumerate(emitted.arguments) if a.divisor > 1}
    source_type = GluonASTSource if is_gluon else ASTSource
    source = source_type(getattr(module, emitted.entry), signature, {}, aligned)
    options: dict[str, Any] = {
        "num_warps": emitted.warps,
        "num_stages": emitted.spec.config.stages,
        "enable_fp_fusion": True,
    }
    if emitted.maxnreg:
        options["maxnreg"] = emitted.maxnreg
    with knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = folder
        knobs.compilation.disable_line_info = True  # it would name the folder, and equal kernels would differ
        compiled = triton_compile(source, target=GPUTarget("cuda", emitted.spec.arch, 32), options=options)
    meta: Any = compiled.metadata
    total = re.search(r"\.reqntid (\d+)", compiled.asm["ptx"])
    warps = int(total[1]) // 32 if total else meta.num_warps
    maps = tuple((m["swizzle"], tuple(m["block_size"])) for m in getattr(meta, "tensordesc_meta", None) or [])
    entry = compiled.asm["ptx"].split(".entry", 1)[1].split(")", 1)[0]
    parameters = tuple(re.findall(r"\.param (?:\.align \d+ )?\.(\w+)", entry))
    return Binary(compiled.asm["cubin"], meta.name, warps, meta.shared, parameters, maps)


def _signature(argument: Any, is_gluon: bool) -> str:
    if not isinstance(argument, ViewArgument) or not is_gluon:
        return argument.signature
    element = re.match(r"tensordesc<(\w+)\[", argument.signature)
    assert element is not None
    dtype = getattr(gl, next(each.torch_name for each in DTYPES.values() if each.triton == element[1]))
    shape = [int(x) for x in re.findall(r"\d+", argument.signature.split("[")[1])]
    return argument.signature[:-1] + f",{NVMMASharedLayout.get_default_for(shape, dtype)!r}>"

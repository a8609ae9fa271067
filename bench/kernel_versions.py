"""Emitted kernels of several versions of the code against each other, on one GPU, in one process.

    python -m bench.kernel_versions build before/ --only 8x8-    in a checkout of the code before; needs no GPU
    python -m bench.kernel_versions build after/ --only 8x8-     in this one, or with another --config
    python -m bench.kernel_versions time before/ after/          on an H100

Cases are those of bench.kernels, compiled for an H100. All versions get the same tensors, must agree with the first to
within what bf16 rounds, and are timed hot and cool, in random order. ``hot`` and ``cool`` of a version are the times of
the first over its own. The files are those of the kernel cache and hold machine code: time only what you have built.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.kernels import Case, Run, cases, heads_last, measure
from bench.protocol import RESULTS, publish
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.config import KernelConfig
from planner.runtime.cuda.launch import Kernel
from planner.runtime.kernels.autotune import configured
from planner.runtime.kernels.cache import SUFFIX, build
from planner.runtime.kernels.kernel_file import KernelFile

HOT_ROUNDS = 3

TOLERANCE = 0.02
"""Two kernels' outputs, of values drawn from a normal distribution, differ by less than this where both are right."""


def build_into(folder: Path, config: KernelConfig | None, case: Case) -> Path:
    """Compile a case's kernel, in its own config if config is None, into a file named after the case."""
    path, problem = folder / f"{case.name}{SUFFIX}", case.problem
    spec = configured(problem) if config is None else make_spec(problem, config)
    path.write_bytes(build(spec).to_bytes())
    return path


def compare(case: Case, folders: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Measure rates and ratios: a row; raises SystemExit where a version's output differs from the first one's."""
    q, k, v = heads_last(case, case.tokens)
    names, runs, outs = [folder.name for folder in folders], dict[str, Run](), list[torch.Tensor]()
    for folder, name in zip(folders, names, strict=True):
        kernel = KernelFile.from_bytes((folder / f"{case.name}{SUFFIX}").read_bytes())
        outs.append(torch.full_like(q, torch.nan))
        runs[name] = partial(Kernel(kernel.emitted, kernel.binary, q.device), q, k, v, outs[-1], case.head_dim**-0.5)
        runs[name]()
        error = (outs[-1] - outs[0]).abs().max().item()
        if not error < TOLERANCE:
            raise SystemExit(f"{case.name}: {name} differs from {names[0]} by {error:.3g}")
    row = measure(case, runs, HOT_ROUNDS, cool=names, cool_rounds=rounds)
    for name in names[1:]:
        row[f"{name} hot"] = row[f"{name} TFLOP/s"] / row[f"{names[0]} TFLOP/s"]
        row[f"{name} cool"] = row[f"{name} cool TFLOP/s"] / row[f"{names[0]} cool TFLOP/s"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("build", "time"))
    parser.add_argument("folders", nargs="+", type=Path, help="one to build into, or all to time, the first one first")
    parser.add_argument("--only", default="", help="cases whose names contain one of these, with commas between")
    parser.add_argument("--config", default="", help="kernel config to build in, as sm90{m=128,…}")
    parser.add_argument("--rounds", type=int, default=9, help="of those after rests")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    chosen = cases(options.only)
    if options.step == "build":
        if len(options.folders) != 1:
            parser.error("build takes one folder")
        options.folders[0].mkdir(parents=True, exist_ok=True)
        config = KernelConfig.parse(options.config) if options.config else None
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for path in pool.map(partial(build_into, *options.folders, config), chosen):
                print(path, flush=True)
        return
    if len({folder.name for folder in options.folders}) < 2:
        parser.error("time takes two folders or more, of different names")
    built = [case for case in chosen if all((each / f"{case.name}{SUFFIX}").exists() for each in options.folders)]
    if not built:
        parser.error("no case has been built into every folder")
    publish("kernel_versions", [compare(case, options.folders, options.rounds) for case in built], options.output)


if __name__ == "__main__":
    main()

"""How long kernels take to emit, to compile and to find in the cache again: the goldens of the tests, on this CPU."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.protocol import publish
from planner.codegen.emit.bodies import emit
from planner.runtime.kernels.cache import Cache, toolchain

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from kernel_specs import SPECS


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    toolchain()  # once a process: the digest of the code
    emit(next(iter(SPECS.values())))
    rows = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder) / "kernels")
        for name, spec in SPECS.items():
            emitting = seconds(lambda spec=spec: emit(spec))
            cold = seconds(lambda spec=spec: cache.get(spec))
            hits = sorted(seconds(lambda spec=spec: cache.get(spec)) for _ in range(5))
            rows.append({"kernel": name, "emit ms": emitting * 1e3, "compile s": cold, "cache hit ms": hits[2] * 1e3})
    publish("kernel_builds", rows)


if __name__ == "__main__":
    main()

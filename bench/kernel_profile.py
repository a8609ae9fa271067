"""Where the time of emitted kernels goes, by the GPU's own counters: the clock, the tensor cores, L2 and device memory.

    python -m bench.kernel_profile                 profiles the cases of bench.kernels under ncu
    python -m bench.kernel_profile --read run.csv  a report that ncu wrote before

``ceiling`` is what the tensor cores multiply in a second at the clock that the launch ran at; ``busy`` the share of it
that they are kept busy for; ``useful`` the share of what they multiply that the pattern attends to: the three make the
rate. One launch of each case, with the counters' overhead; needs Nsight Compute.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.kernels import Case, cases, ours
from bench.protocol import RESULTS, provenance, publish
from planner.errors import MissingDependency

FLOPS_PER_CLOCK = 132 * 4096
"""Dense bf16 operations of an H100's multiprocessors in a cycle (data sheet: 989 TFLOP/s at 1.83 GHz)."""

NCU = [
    *("ncu", "--clock-control", "none", "--profile-from-start", "off", "-k", "attention", "--csv", "--page", "details"),
    *("--section", "SpeedOfLight", "--section", "MemoryWorkloadAnalysis"),
]


def launch_all() -> None:
    """Launch every case once with the profiler off, to compile and to warm up, and once with it on."""
    facts = provenance()
    print("PROVENANCE", json.dumps({name: facts[name] for name in ("device", "torch", "date")}))
    for case in cases():
        run = ours(case)
        run()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        run()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
        print("CASE", case.name, flush=True)


def rows_of(report: str) -> list[dict[str, Any]]:
    """Read the table out of the lines that ncu and the launches print."""
    lines = report.splitlines()
    named = {case.name: case for case in cases()}
    order = [named[line.split()[1]] for line in lines if line.startswith("CASE")]
    launches = dict[str, dict[str, str]]()
    for entry in csv.DictReader(line for line in lines if line.startswith('"')):
        launches.setdefault(entry["ID"], {})[entry["Metric Name"]] = entry["Metric Value"]
    return [_row(case, metrics) for case, metrics in zip(order, launches.values(), strict=True)]


def _row(case: Case, metrics: dict[str, str]) -> dict[str, Any]:
    wanted = (
        "SM Frequency",
        "Duration",
        "Compute (SM) Throughput",
        "L2 Cache Throughput",
        "L2 Hit Rate",
        "DRAM Throughput",
    )
    values = {name: float(metrics[name].replace(",", "")) for name in wanted}
    ceiling = FLOPS_PER_CLOCK * values["SM Frequency"] / 1e12
    busy = values["Compute (SM) Throughput"] / 100
    rate = case.flops() / values["Duration"] / 1e3
    return {
        "case": case.name,
        "ms": values["Duration"] / 1e6,
        "TFLOP/s": rate,
        "clock GHz": values["SM Frequency"] / 1e9,
        "ceiling TFLOP/s": ceiling,
        "busy": busy,
        "useful": rate / (ceiling * busy),
        "L2": values["L2 Cache Throughput"] / 100,
        "L2 hits": values["L2 Hit Rate"] / 100,
        "memory": values["DRAM Throughput"] / 100,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=Path, help="a report of ncu")
    parser.add_argument("--launch", action="store_true", help="what runs under ncu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    if options.launch:
        launch_all()
        return
    if options.read is None:
        command = [*NCU, sys.executable, "-m", "bench.kernel_profile", "--launch"]
        try:
            report = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        except FileNotFoundError:
            raise MissingDependency("ncu", "profiling kernels", "Install Nsight Compute.") from None
    else:
        report = options.read.read_text()
    provenance = next(line for line in report.splitlines() if line.startswith("PROVENANCE"))
    settings = json.loads(provenance.removeprefix("PROVENANCE"))
    publish("kernel_profile", rows_of(report), options.output, **settings)


if __name__ == "__main__":
    main()

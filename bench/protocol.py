"""The end of every benchmark: a printed table, and a file of its rows with their provenance."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

import planner

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """Return command, device, versions, commit and date."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    script = Path(sys.argv[0])
    return {
        "command": shlex.join(["python", "-m", f"{script.parent.name}.{script.stem}", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "planner": planner.__version__,
        "commit": commit,
        "date": date.today().isoformat(),
    }


def publish(name: str, rows: Sequence[Mapping[str, Any]], folder: Path = RESULTS, **settings: Any) -> None:
    """Print a table, without mappings, and write NAME.json, with the settings it was measured at, to bench/results."""
    headings = [name for name, value in rows[0].items() if not isinstance(value, dict)]
    cells = [[_cell(row[heading]) for heading in headings] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for line in (headings, *cells):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    folder.mkdir(exist_ok=True)
    text = json.dumps({"provenance": {**provenance(), **settings}, "rows": list(rows)}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []

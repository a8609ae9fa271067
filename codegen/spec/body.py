"""Kernel bodies: the ways in which a problem can be computed, of which each is a template with its own constraints.

A body is an instance of a subclass of ``KernelBody``, registered under its name; a plug-in adds one in the same way::

    class ReferenceBody(KernelBody):
        name, order = "reference", 50

        def why_not(self, config, problem): ...   # None, or the first reason against it
        def candidates(self, problem): ...        # the configs that are worth trying, KernelConfig(self.name, …)
        def emit(self, spec): ...                 # its source, arguments and grid: planner.codegen.spec.emitted

    BODIES.register("reference")(ReferenceBody())

Its kernels are then chosen, compiled, cached, bundled and launched as all others are. The project's own are files of
``codegen/emit/``, which are found there. What arguments of a kernel may be called is said by
``planner.runtime.cuda.parameters``; those that are a ``ViewArgument`` are passed as tensor maps, and tensors must then
lie as TMA needs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal

from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.emitted import Emitted
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.problem import Problem
from planner.registry import Registry


class KernelBody(ABC):
    """One way to compute problems.

    name: in the spelling of configs. order: its place among bodies, those that are expected to be fastest first.
    language: what its source is written in. computes_means: whether it computes the means of groups, not attention.
    paired: whether a query tile holds a pair of groups, and a key tile a box for each. reads_lists: whether it can read
    the key groups that lists made at run time name.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 100
    language: ClassVar[Literal["triton", "gluon"]] = "triton"
    computes_means: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    reads_lists: ClassVar[bool] = False

    @abstractmethod
    def why_not(self, config: KernelConfig, problem: Problem) -> str | None:
        """Say why a kernel of a config, whose name is the body's, cannot serve a problem; None if it can."""

    @abstractmethod
    def candidates(self, problem: Problem) -> Iterable[KernelConfig]:
        """Yield the configs that are worth trying, the one that should be fastest first; some may not be possible."""

    @abstractmethod
    def emit(self, spec: KernelSpec) -> Emitted:
        """Emit the kernel of a spec, for which there is no reason against."""

    def shared_bytes(self, config: KernelConfig, problem: Problem) -> int:
        """Return the bytes of shared memory that a kernel needs at least."""
        return 0


BODIES: Registry[KernelBody] = Registry("kernel body", builtin=("planner.codegen.emit", "planner.codegen.emit.hopper"))
"""Kernel bodies by name."""


def make_spec(problem: Problem, config: KernelConfig) -> KernelSpec:
    """Make the spec of a kernel for a problem; raises UnknownName where there is no such body."""
    fields = problem.fields()
    return KernelSpec(**fields, config=config, paired=BODIES[config.body].paired)  # pyright: ignore[reportArgumentType]

"""A target: a processor with four cores."""

from dataclasses import replace

from planner.plan.target import TARGETS

FOUR_CORES = TARGETS.register("four-cores")(replace(TARGETS["cpu"], name="four-cores", tflops=0.36, tflops32=0.36))

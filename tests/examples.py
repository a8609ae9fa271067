"""Values that several tests begin with: sites, targets, plans with rules, models on the meta device."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

from planner.patterns.dense import Dense
from planner.patterns.density import rules_density
from planner.patterns.layout import TokenLayout
from planner.patterns.neighborhood import Neighborhood
from planner.patterns.rules import Rules
from planner.plan.site import AttentionSite
from planner.plan.target import TARGETS, Target

targets = st.sampled_from(sorted(TARGETS)).map(Target.named)


def site(layout="text:512 | h:128 w:128", name="attn", key_layout=None, **kwargs):
    layout = TokenLayout.parse(layout) if isinstance(layout, str) else layout
    keys = TokenLayout.parse(key_layout) if key_layout else layout
    shape = {"batch": 1, "heads": 24, "kv_heads": 24, "head_dim": 128, "dtype": "bfloat16"} | kwargs
    return AttentionSite(name, queries=layout.tokens, keys=keys.tokens, layout=layout, key_layout=keys, **shape)


def mixed(plan):
    """Return the plan with the last head of sparse sites on nearby groups at low noise, and the first always dense."""
    near = Neighborhood((3, 5), (0, 0), "clamp")
    decisions = []
    for decision in plan.decisions:
        if decision.is_sparse:
            sparse = decision.rules.patterns[0]
            low = [Dense(), *[sparse] * (decision.heads - 2), near]
            high = [Dense(), *[near] * (decision.heads - 1)]
            rules = Rules.of([low, low, high], [0.3, 0.5, 1.0])
            layout = TokenLayout.parse(decision.layout)
            decision = replace(decision, pattern=str(rules), density=rules_density(rules, layout, decision.heads))
        decisions.append(decision)
    return replace(plan, decisions=tuple(decisions)).verify()


def on_meta(model, kwargs):
    """Return the same without weights: images and text on the meta device, masks and ids as they are."""
    keep = {"img_ids", "txt_ids"}
    moved = {
        name: value.to("meta")
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name not in keep
        else value
        for name, value in kwargs.items()
    }
    return model.to("meta"), moved

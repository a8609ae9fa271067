"""From attention sites to decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from planner.errors import BadOption, GroupTooLarge, PatternCoversAll, UnreachableBudget
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules
from planner.plan.options import Options
from planner.plan.plan import Decision, Plan
from planner.plan.site import AttentionSite, Unreadable
from planner.plan.target import Target
from planner.search.cost import costs_under
from planner.search.rank import Candidate, Rejection, rank, why_dense


def decide(
    sites: Sequence[AttentionSite], options: Options, target: Target, at_any_size: bool = False
) -> tuple[Decision, ...]:
    """Make one decision per site; what that costs depends on its layout's spelling, never on its number of tokens.

    at_any_size: sites that are too small for what the caller named stay dense, with the reason. Raises BadOption for a
    budget of a dense plan, UnreachableBudget if no site can meet a budget, GroupTooLarge if no site has the axes of the
    group that is named, and, unless at any size, GroupTooLarge or PatternCoversAll if all are too small for the group
    or the pattern.
    """
    seen = Counter[str]()
    ranked = list[tuple[AttentionSite, list[Candidate]]]()
    for site in sites:
        is_shifted = options.alternate_offsets and seen[str(site.layout)] % 2 == 1
        ranked.append((site, rank(site, options, target, is_shifted)))
        seen[str(site.layout)] += site.why_not() is None
    _check_request(ranked, options, at_any_size)
    return tuple(_decision(site, candidates, options, target) for site, candidates in ranked)


def candidates_of(decision: Decision, plan: Plan) -> list[Candidate]:
    """Rank again the candidates that a decision was made from; none where the site itself ruled them out."""
    rules = decision.rules
    is_shifted = plan.options.alternate_offsets and any(pattern.offset for pattern in rules.patterns)
    ranked = rank(site_of(decision), plan.options, Target.named(plan.target), is_shifted)
    return ranked if Rules.uniform(ranked[0].pattern, plan.options.sparse_below) == rules else []


def site_of(decision: Decision) -> AttentionSite:
    """Return the site that a decision is about, with those fields that costs depend on."""
    _, layout = decision.parsed()
    unknown = Unreadable(decision.reason)
    return AttentionSite(
        name=decision.site,
        batch=decision.batch,
        heads=decision.heads,
        kv_heads=decision.kv_heads,
        queries=decision.queries,
        keys=decision.keys,
        head_dim=decision.head_dim,
        dtype=decision.dtype,
        layout=layout or unknown,
        key_layout=layout or unknown,
    )


def _decision(site: AttentionSite, ranked: Sequence[Candidate], options: Options, target: Target) -> Decision:
    best = ranked[0]
    is_dense, rules = isinstance(best.pattern, Dense), Rules.uniform(best.pattern, options.sparse_below)
    return Decision(
        site=site.name,
        layout=str(site.layout),
        batch=site.batch,
        heads=site.heads,
        kv_heads=site.kv_heads,
        queries=site.queries,
        keys=site.keys,
        head_dim=site.head_dim,
        dtype=site.dtype,
        pattern=str(rules),
        reason=why_dense(site, options, ranked) if is_dense else _why(options),
        **costs_under(rules, site, target),
    )


def _why(options: Options) -> str:
    budgets = [("density", options.density), ("speedup", options.speedup)]
    budget = ", ".join(f"{name}={value:g}" for name, value in budgets if value is not None)
    return f"keeps the most within {budget}" if budget else "keeps the most of what beats dense attention"


def _check_request(
    ranked: Iterable[tuple[AttentionSite, Sequence[Candidate]]], options: Options, at_any_size: bool
) -> None:
    """Raise the error of an option that no site can follow, in place of a plan that is dense everywhere."""
    if options.request is not None and options.request.kind == "dense":
        for name in ("density", "speedup"):
            if getattr(options, name) is not None:
                raise BadOption(name, getattr(options, name), "nothing where pattern=dense leaves nothing to choose")
        return
    able = [(site, candidates) for site, candidates in ranked if site.why_not() is None]
    gridded = [site for site, _ in able]
    sparse = [(site, c) for site, candidates in able for c in candidates if not isinstance(c.pattern, Dense)]
    if not gridded or any(candidate.rejected is None for _, candidate in sparse):
        return
    site = max(gridded, key=lambda site: site.queries)
    layout = site.layout
    assert isinstance(layout, TokenLayout)
    losses = [(candidate, candidate.rejected) for _, candidate in sparse if candidate.rejected is not None]
    shape = options.group_shape
    if shape is not None and all(_is_misfit(site, shape, at_any_size) for site in gridded):
        suggestion = tuple(max(1, min(8, n // 2)) for n in layout.grid.sizes)
        raise GroupTooLarge(site.name, shape, str(layout.grid), suggestion)
    if (
        not at_any_size
        and options.pattern is not None
        and losses
        and all(loss.kind == "covers all" for _, loss in losses)
    ):
        candidate = max((c for s, c in sparse if s is site), key=lambda c: c.density)
        counts = candidate.pattern.grid(layout.grid.sizes).counts
        raise PatternCoversAll(site.name, str(candidate.pattern), counts)
    over = [(candidate, loss) for candidate, loss in losses if loss.kind == "over budget"]
    if over:
        raise UnreachableBudget(site.name, _budget(options), _nearest(over, options))


def _is_misfit(site: AttentionSite, group: tuple[int, ...], at_any_size: bool) -> bool:
    """Whether a group has other axes than a site's grid, or, unless at any size, is larger than the grid."""
    sizes = site.layout.grid.sizes if isinstance(site.layout, TokenLayout) else ()
    if len(sizes) != len(group):
        return True
    return not at_any_size and any(g > n for g, n in zip(group, sizes, strict=True))


def _budget(options: Options) -> str:
    budgets = [("density", "at most", options.density), ("speedup", "at least", options.speedup)]
    return " and ".join(f"a {name} of {bound} {value:g}" for name, bound, value in budgets if value is not None)


def _nearest(over: Sequence[tuple[Candidate, Rejection]], options: Options) -> str:
    by_density = options.density is not None
    candidate, loss = min(over, key=lambda pair: pair[0].density if by_density else pair[0].seconds)
    return f"{candidate.pattern} ({loss.detail.split(',')[0]})"

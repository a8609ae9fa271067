"""Reach: the layers until every token can influence every other.

Each pattern knows its own reach in closed form; the group graph below is the exact, slow meaning that judges it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import networkx as nx
import torch

from planner.patterns.base import Pattern
from planner.patterns.groups import GroupGrid

Node = tuple[int, ...]
"""Coordinates of a group."""


def group_graph(pattern: Pattern, grid: GroupGrid) -> nx.DiGraph[Node]:
    """Return the graph of influence in one layer: an edge from each key group to every query group that reads it.

    Nodes are group coordinates; O(groups²), for grids of a few thousand groups.
    """
    nodes = list(grid.coords())
    table = torch.tensor(nodes).unbind(1)
    reads = pattern.attends([x[:, None] for x in table], [x[None, :] for x in table], grid.counts)
    graph: nx.DiGraph[Node] = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((nodes[key], nodes[query]) for query, key in reads.nonzero().tolist())
    return graph


def graph_reach(graph: nx.DiGraph[Node]) -> int | None:
    """Return the greatest distance between two groups, at least 1; None if some group never influences another."""
    if not nx.is_strongly_connected(graph):
        return None
    distances = nx.all_pairs_shortest_path_length(graph)
    return max(1, max(itertools.chain.from_iterable(lengths.values() for _, lengths in distances)))


def plan_reach(layers: Sequence[tuple[Pattern, Sequence[int]]]) -> int | None:
    """Bound from above the layers until all tokens mix, for layers in order with their group counts; None if never.

    A pattern that reaches in r layers has mixed everything once r of the layers use it, whatever the others do,
    because every query reads its own group. Global tokens are left out: through them any model mixes in two layers.
    """
    used = dict[str, int]()
    for depth, (pattern, counts) in enumerate(layers, start=1):
        key = f"{pattern} {tuple(counts)}"
        used[key] = used.get(key, 0) + 1
        reach = pattern.reach(counts)
        if reach is not None and used[key] >= reach:
            return depth
    return None

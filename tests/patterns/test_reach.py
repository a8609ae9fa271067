from hypothesis import given
from strategies import problems

from planner.patterns.crisscross import CrissCross
from planner.patterns.dense import Dense
from planner.patterns.groups import GroupGrid
from planner.patterns.neighborhood import Neighborhood
from planner.patterns.reach import graph_reach, group_graph, plan_reach


@given(problems())
def test_reach_is_the_greatest_distance_in_the_group_graph(problem):
    _, grid, pattern = problem
    assert pattern.reach(grid.counts) == graph_reach(group_graph(pattern, grid))


def test_grat_patterns_on_flux():
    grid = GroupGrid((64, 64), (8, 8))
    assert graph_reach(group_graph(CrissCross((8, 8)), grid)) == 2
    assert graph_reach(group_graph(Neighborhood((8, 8), (1, 1), "clip"), grid)) == 7


def test_a_plan_mixes_once_one_pattern_has_had_its_layers():
    near, cross = Neighborhood((8, 8), (1, 1), "clip"), CrissCross((8, 8))
    counts = (8, 8)
    assert plan_reach([(near, counts)] * 6) is None
    assert plan_reach([(near, counts)] * 7) == 7
    assert plan_reach([(near, counts), (cross, counts), (near, counts), (cross, counts)]) == 4
    assert plan_reach([(near, counts), (Dense(), counts)]) == 2
    assert plan_reach([(Neighborhood((8, 8), (0, 0)), counts)] * 50) is None

"""Eager interception: a model runs without a captured graph, and its attention calls follow a plan."""

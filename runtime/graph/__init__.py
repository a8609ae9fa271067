"""Passes over captured graphs: rewriting, hoisting permutations, regional compilation."""

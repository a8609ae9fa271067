"""Executing plans: recipes, grouped attention, the operator, graph rewriting, the compiled model."""

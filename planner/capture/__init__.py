"""A model becomes one ATen graph, without being run."""

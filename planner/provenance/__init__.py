"""Where tokens come from: from a graph to its attention sites and their token layouts."""

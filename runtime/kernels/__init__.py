"""From a tensor problem to a compiled kernel: compiled, cached, bundled, tuned, inspected."""

"""Planned attention on tensors: the operator, emitted kernels on a GPU, grouped attention on the CPU."""

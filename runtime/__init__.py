"""Execution of plans: attention on tensors, eager interception, rewritten graphs, evidence, the compiled model."""

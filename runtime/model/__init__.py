"""The compiled model: it plans at the first call, remembers and reports."""

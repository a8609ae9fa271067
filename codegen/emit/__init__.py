"""A kernel specification becomes source text."""

"""Emission for Hopper: facts of a warp-specialised kernel, lines printed from closed forms, source and arguments."""

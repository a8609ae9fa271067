"""Eager interception: models that run as they are written, their attention calls under a plan."""

"""A plug-in of the planner: what it adds is in the modules that are its entry points."""

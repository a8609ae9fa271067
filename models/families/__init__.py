"""Model families: one file each, with its inputs, its public configurations, and its velocity where it is sampled here.

A file registers a `Family` under the name of a diffusers class, and any number of `Entry` under names of models (both
in `planner.models.families.base`); nothing else knows it. ``planner plan NAME`` then works, and so does
``planner plan FOLDER`` of a folder with a diffusers config.json of that class. A plug-in's module does the same.
"""

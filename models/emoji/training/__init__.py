"""Training of the shipped reference models: ``python -m planner.models.emoji.training.emoji_flux --help``."""

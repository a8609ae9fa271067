"""Training of the shipped reference models: ``python -m models.training.emoji_flux --help``."""

"""Evidence: effects of candidate patterns on a model's own attention, recorded while it samples."""

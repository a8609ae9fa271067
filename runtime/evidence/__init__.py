"""What candidates do to a model's own attention, recorded while it samples."""

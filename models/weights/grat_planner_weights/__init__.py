"""Trained weights of planner's small reference models; ``planner.models.load`` finds them here."""

"""Tests of the documentation: every snippet runs, and pages that say how to add a thing are followed literally."""

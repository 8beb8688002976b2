"""Scores of images against their originals, or against their conditions."""

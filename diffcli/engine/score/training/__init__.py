"""Scores during training."""

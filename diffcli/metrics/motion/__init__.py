"""Scores of clips: motion, constancy and the networks that look at frames and clips."""

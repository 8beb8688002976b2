"""Scores of generated images: extractors, summaries of their features, and the metrics computed from these."""

"""Scores of generated images: extractors, what is kept of a stream of features, and the metrics computed from it."""

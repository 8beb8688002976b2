"""Scoring: two sides, the features extracted from them, and the report."""

"""Scoring: two sides, what is extracted of them, and what is reported."""

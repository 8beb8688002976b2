"""Checkpoints of other projects: importing published weights, and exporting folders for other libraries."""

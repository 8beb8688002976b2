"""Training, sampling and scoring: one loop each, for all tasks."""

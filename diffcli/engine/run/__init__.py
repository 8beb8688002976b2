"""Training: one loop for all tasks, the work after each step, and resuming."""

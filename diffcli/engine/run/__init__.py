"""Training: one loop that any task runs in, what is due after each step, and how a run goes on."""

"""The verbs: train, sample, evaluate; one loop each, for any task."""

"""What a run shows: its first and last lines, curves, labelled previews, and trackers."""

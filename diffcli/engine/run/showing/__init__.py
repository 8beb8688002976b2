"""What a run shows of itself: its first and last words, curves, labelled previews, and the trackers that it writes to."""

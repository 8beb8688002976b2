"""Finds presets and checkpoints and reads their plain files; validates no tree, reads no weights, imports no torch."""

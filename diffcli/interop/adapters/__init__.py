"""Low-rank changes of other libraries: their names, and the layers of theirs that ours stand for."""

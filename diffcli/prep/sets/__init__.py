"""The kinds of source that prep-data reads, one family a file."""

"""Data sets that yield named fields, the batches made from them, and their preparation into shards."""

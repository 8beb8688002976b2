"""Preparing data sets: each kind of source as items in a fixed order, written as shards with an index."""

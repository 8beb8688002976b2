"""Sets that are read in one pass: tar shards anywhere, in an order that can be resumed."""

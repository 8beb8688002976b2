"""Clips as data: films of any kind read by time, from folders and from prepared sets."""

"""Grids of images, and the captions under them."""

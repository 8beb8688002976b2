"""Sampling under pictures: files as conditions, the size of the images that follow, and cascades of stages."""

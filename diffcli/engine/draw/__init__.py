"""Sampling: the request, its conditions, the sampler's walk, and output files."""

"""Masks of images: ensembles of a diffusion model of masks, or the one answer of a segmentation model, and their files."""

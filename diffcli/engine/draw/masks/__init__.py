"""Masks of images: ensembles drawn by a diffusion model, or the prediction of a segmentation model, and their files."""

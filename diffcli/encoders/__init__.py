"""Pretrained encoders of texts and images, loaded by the libraries that publish them; frozen."""

"""Codecs: the way from a field of the data to the space that diffusion runs in, and back. Pixels are a codec too."""

"""Codecs map a field of the data to the space in which diffusion runs, and back. Pixels are a codec too."""

"""Pictures made of several: how images are laid out, and the words under them."""

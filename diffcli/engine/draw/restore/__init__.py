"""Restoration without training: pictures of which a linear operator has left something."""

"""Restoration without training: pictures that a known linear operator has degraded."""

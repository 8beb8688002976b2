"""Clips: how long they are, which frames are given, how a stage for images sees them, and how they are written."""

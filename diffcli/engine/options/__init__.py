"""The options of drawing, and what of them contradicts itself; nothing here imports torch."""

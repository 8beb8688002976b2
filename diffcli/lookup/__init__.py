"""Where presets and checkpoints stand and what their plain files say; no tree is validated, no weight read, no torch imported."""

"""U-Nets of other libraries, as tables of renamings and of keys."""

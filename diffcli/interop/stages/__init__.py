"""First stages of other libraries, as tables of renamings and of keys."""

"""Records beside weights and outputs, which are needed to use them or to make them again."""

"""Tasks: a task joins a codec, conditioners and a network, and defines the loss."""

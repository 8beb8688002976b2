"""What is trained: a task joins a codec, conditioners and a network and says what the loss is."""

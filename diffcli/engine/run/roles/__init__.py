"""What a run trains of the parameters of its networks, and how fast."""

"""What is written down beside weights and outputs, so that they can be used and made again."""

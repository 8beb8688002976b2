"""Other people's checkpoints: published weights in, folders for other libraries out."""

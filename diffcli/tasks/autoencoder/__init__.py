"""First stages as a task: an autoencoder whose loss has a pixel, a perceptual and an adversarial part."""

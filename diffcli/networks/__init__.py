"""Everything with weights: U-Net, classifier, conditioners; knows nothing of diffusion, data or training."""

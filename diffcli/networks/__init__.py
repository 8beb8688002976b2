"""Networks: U-Nets, transformers, first stages, classifiers; independent of diffusion, data and training."""

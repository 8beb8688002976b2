"""diffcli: train, resume, sample, animate and score diffusion models from the command line."""

__version__ = "0.1.0"

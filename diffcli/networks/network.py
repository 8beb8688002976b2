"""The contract of denoising networks: what a preset's `task.network` builds."""

from abc import abstractmethod

from torch import nn

from diffcli.config import Config, ImageShape
from diffcli.networks.conditioning import CondShape


class NetworkConfig(Config):
    """What builds a denoising network."""

    @abstractmethod
    def build(self, shape: ImageShape, out_channels: int, cond: CondShape) -> nn.Module:
        """A module with forward(x (B, C, H, W), time (B,), cond: Conditioning) -> (B, out_channels, H, W)."""

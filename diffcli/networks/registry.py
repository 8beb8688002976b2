"""Every network that a preset can name in `task.network.kind`."""

from diffcli.networks.unet import UNetConfig

AnyNetwork = UNetConfig

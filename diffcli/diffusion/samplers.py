"""Every sampler by name; one file a family.

The probability-flow ODE of every Gaussian path is dx = x0 d(alpha) + eps d(sigma). Its left-point rule is DDIM(eta = 0), which on
the flow path is flow-Euler; its trapezoid is Heun; DDIM(eta = 1) is DDPM(small).
"""

from typing import Annotated

from pydantic import Field

from diffcli.diffusion.ancestral import Ddim, Ddpm
from diffcli.diffusion.heun import Heun
from diffcli.diffusion.multistep import DpmPlusPlus2M
from diffcli.diffusion.sampler import Sampler, Step

__all__ = ["AnySampler", "Ddim", "Ddpm", "DpmPlusPlus2M", "Heun", "Sampler", "Step"]

AnySampler = Annotated[Ddpm | Ddim | Heun | DpmPlusPlus2M, Field(discriminator="kind")]

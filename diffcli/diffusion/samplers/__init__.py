"""Every sampler by name; one file for each family.

The probability-flow ODE of every Gaussian path is dx = x0 d(alpha) + eps d(sigma). Its left-point rule is DDIM(eta = 0), which on
the flow path is flow-Euler; its trapezoid is Heun; DDIM(eta = 1) is DDPM(small).
"""

from typing import Annotated

from pydantic import Field

from diffcli.diffusion.samplers.ancestral import Ddim, Ddpm, Euler, EulerAncestral
from diffcli.diffusion.samplers.heun import EdmHeun, Heun
from diffcli.diffusion.samplers.multistep import Ab4, DpmPlusPlus2M, DpmPlusPlus2MSde, DpmPlusPlus3M, Plms, UniPc
from diffcli.diffusion.samplers.ode import Ode
from diffcli.diffusion.samplers.sampler import Sampler, Step, last

__all__ = [
    "Ab4",
    "AnySampler",
    "Ddim",
    "Ddpm",
    "DpmPlusPlus2M",
    "DpmPlusPlus2MSde",
    "DpmPlusPlus3M",
    "EdmHeun",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Ode",
    "Plms",
    "Sampler",
    "Step",
    "UniPc",
    "last",
]

AnySampler = Annotated[
    Ddpm
    | Ddim
    | Euler
    | EulerAncestral
    | Heun
    | EdmHeun
    | Plms
    | Ab4
    | DpmPlusPlus2M
    | DpmPlusPlus2MSde
    | DpmPlusPlus3M
    | UniPc
    | Ode,
    Field(discriminator="kind"),
]

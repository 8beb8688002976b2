"""Kernels of an antialiased resize, by Pillow's names. Imports nothing heavy."""

from typing import Literal, get_args

Kernel = Literal["bicubic", "lanczos", "bilinear", "box"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

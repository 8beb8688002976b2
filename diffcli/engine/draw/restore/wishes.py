"""`--restore NAME[:OPTION]`: which operator took what away, as it is typed, and the flags that go with it."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diffcli.config import UserError, did_you_mean
from diffcli.diffusion.operators import KERNELS, Kernel, Known, Luma, Operator, blurred, lowered

Loss = Literal["sr2", "sr4", "colour", "blur", "mask"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
FACTORS = {"sr2": 2, "sr4": 4}
SIGMA = 1.5  # pixels, of a blur that nothing is said of


class Wish(NamedTuple):
    """What a picture has lost. kernel: of sr2 and sr4; sigma: of blur, in pixels."""

    loss: Loss
    kernel: Kernel = "bicubic"
    sigma: float = SIGMA

    @property
    def factor(self) -> int:
        """How many times smaller a side has become."""
        return FACTORS.get(self.loss, 1)

    @property
    def exact(self) -> bool:
        """Whether pictures must come in the very size that the operator gives: resizing them would be another operator."""
        return self.loss in ("sr2", "sr4", "blur")

    def operator(self, size: tuple[int, int], painted: Tensor | None = None) -> Operator:
        """Of images of (height, width). painted: bool (H, W), where the mask says that nothing is known."""
        if self.factor > 1:
            return lowered(size, self.factor, self.kernel)
        if self.loss == "blur":
            return blurred(size, self.sigma)
        return Luma() if self.loss == "colour" else Known(torch.ones(size).bool() if painted is None else ~painted)


def wished(text: str) -> Wish:
    """What `sr2`, `sr4:box`, `colour`, `blur:2` or `mask` ask for. Raises UserError."""
    name, colon, option = text.partition(":")
    loss = next((each for each in LOSSES if each == name), None)
    if loss is None:
        raise UserError(f"--restore {text}: '{name}' is no operator", did_you_mean(name, LOSSES))
    if not colon:
        return Wish(loss)
    if loss in FACTORS:
        kernel = next((each for each in KERNELS if each == option), None)
        if kernel is None:
            raise UserError(f"--restore {text}: '{option}' is no kernel", did_you_mean(option, KERNELS))
        return Wish(loss, kernel=kernel)
    if loss == "blur":
        try:
            sigma = float(option)
        except ValueError:
            sigma = 0
        if not 0.1 <= sigma <= 100:
            raise UserError(
                f"--restore {text}: '{option}' is no deviation of a blur in pixels, from 0.1 to 100",
                f"write --restore blur:{SIGMA:g}, for example",
            )
        return Wish(loss, sigma=sigma)
    raise UserError(f"--restore {text}: {loss} has no option", f"write --restore {loss}")


def check_flags(restore: str | None, degrade: bool, given: dict[str, object]) -> None:
    """Raises UserError for flags that contradict --restore and --degrade. given: --image, --mask and others; None: not given."""
    if restore is None:
        if degrade:
            raise UserError("--degrade: nothing says what shall be taken away", "add --restore sr2, for example")
        return
    wish = wished(restore)
    for flag in ("--strength", "--interpolate"):
        if given[flag] is not None:
            problem = f"{flag} {given[flag]} with --restore {restore}: a picture is restored from pure noise"
            raise UserError(problem, f"leave out {flag} or --restore")
    if given["--image"] is None:
        raise UserError(f"--restore {restore}: there is no picture to restore", "give one with --image FILE")
    if wish.loss == "mask" and given["--mask"] is None:
        raise UserError("--restore mask: nothing says which pixels are lost", "add --mask FILE, white where they are")
    if wish.loss != "mask" and given["--mask"] is not None:
        problem = f"--mask {given['--mask']} with --restore {restore}: no pixel of the picture is lost"
        raise UserError(problem, "leave --mask out, or use --restore mask")

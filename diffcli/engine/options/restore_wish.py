"""`--restore NAME[:OPTION]`: the operator that degraded the pictures, and the flags that belong to it."""

from typing import Literal, NamedTuple, get_args

from diffcli.config import UserError, did_you_mean
from diffcli.lookup.kernels import KERNELS, Kernel

Loss = Literal["sr2", "sr4", "colour", "blur", "mask"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
FACTORS = {"sr2": 2, "sr4": 4}
SIGMA = 1.5  # pixels, the default of blur


class Wish(NamedTuple):
    """The degradation of a picture. kernel: of sr2 and sr4; sigma: of blur, in pixels."""

    loss: Loss
    kernel: Kernel = "bicubic"
    sigma: float = SIGMA

    @property
    def factor(self) -> int:
        """The factor by which a side was made smaller."""
        return FACTORS.get(self.loss, 1)

    @property
    def exact(self) -> bool:
        """Whether pictures must have exactly the size of the operator's output, since resizing would change the operator."""
        return self.loss in ("sr2", "sr4", "blur")


def wished(text: str) -> Wish:
    """The degradation that `sr2`, `sr4:box`, `colour`, `blur:2` or `mask` names. Raises UserError."""
    name, colon, option = text.partition(":")
    loss = next((each for each in LOSSES if each == name), None)
    if loss is None:
        raise UserError(f"--restore {text}: '{name}' is not an operator", did_you_mean(name, LOSSES))
    if not colon:
        return Wish(loss)
    if loss in FACTORS:
        kernel = next((each for each in KERNELS if each == option), None)
        if kernel is None:
            raise UserError(f"--restore {text}: '{option}' is not a kernel", did_you_mean(option, KERNELS))
        return Wish(loss, kernel=kernel)
    if loss == "blur":
        try:
            sigma = float(option)
        except ValueError:
            sigma = 0
        if not 0.1 <= sigma <= 100:
            raise UserError(
                f"--restore {text}: '{option}' is not a standard deviation in pixels, from 0.1 to 100",
                f"write --restore blur:{SIGMA:g}, for example",
            )
        return Wish(loss, sigma=sigma)
    raise UserError(f"--restore {text}: {loss} has no option", f"write --restore {loss}")


def check_flags(restore: str | None, degrade: bool, given: dict[str, object]) -> None:
    """Raises UserError for flags that contradict --restore and --degrade. given: --image, --mask and others; None: not given."""
    if restore is None:
        if degrade:
            raise UserError("--degrade: no operator is given", "add --restore sr2, for example")
        return
    wish = wished(restore)
    for flag in ("--strength", "--interpolate"):
        if given[flag] is not None:
            problem = f"{flag} {given[flag]} with --restore {restore}: restoration starts from pure noise"
            raise UserError(problem, f"leave out {flag} or --restore")
    if given["--image"] is None:
        raise UserError(f"--restore {restore}: there is no picture to restore", "give one with --image FILE")
    if wish.loss == "mask" and given["--mask"] is None:
        raise UserError("--restore mask: no mask says which pixels are lost", "add --mask FILE, white where they are")
    if wish.loss != "mask" and given["--mask"] is not None:
        problem = f"--mask {given['--mask']} with --restore {restore}: this operator has no mask"
        raise UserError(problem, "leave --mask out, or use --restore mask")

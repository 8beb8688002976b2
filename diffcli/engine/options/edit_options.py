"""`--image`, `--mask`, `--strength` and `--interpolate`: starting points other than one new noise for each image."""

from pathlib import Path

from pydantic import ConfigDict, Field

from diffcli.config import Config, UserError
from diffcli.engine.draw.pictures import MemoryPicture

STRENGTH = 0.6  # the noise level of an image to be varied; with a mask it is 1


class EditOptions(Config):
    """The flags; see `check` for those that exclude each other."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    images: tuple[Path | MemoryPicture, ...] = ()
    mask: Path | MemoryPicture | None = None
    strength: float | None = Field(None, gt=0, le=1)
    interpolate: int | None = Field(None, ge=2)

    def check(self) -> None:
        """Raises UserError for flags that contradict each other, before anything is read."""
        if self.interpolate is not None:
            for flag, value in (("--mask", self.mask), ("--strength", self.strength)):
                if value is not None:
                    raise UserError(
                        f"{flag} {value} with --interpolate {self.interpolate}: images are met at pure noise",
                        f"leave out {flag} or --interpolate",
                    )
            if len(self.images) not in (0, 2):
                raise UserError(
                    f"--interpolate {self.interpolate} with {len(self.images)} --image: it goes from one to another",
                    "give --image twice, or not at all for images between two seeds",
                )
        elif not self.images:
            for flag, value in (("--mask", self.mask), ("--strength", self.strength)):
                if value is not None:
                    raise UserError(f"{flag} {value}: there is no image to change", "give one with --image FILE")

    @property
    def level(self) -> float:
        """The time that images are noised to."""
        varied = self.images and self.mask is None and self.interpolate is None
        return self.strength or (STRENGTH if varied else 1.0)

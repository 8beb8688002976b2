"""The model that a run takes its first weights from, as a preset names it in `from`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from diffcli.config import Config, UserError

Weights = Literal["ema", "raw"]


class StartingPoint(Config):
    """A path, or a record of path and weights. It is read once, before the first step of a new run."""

    path: Path = Field(description="run, checkpoint folder, exported file, or what diffcli import wrote")
    weights: Weights = Field("ema", description="its averaged weights, or raw: those that its training left last")

    @model_validator(mode="before")
    @classmethod
    def _of_a_path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str | Path) else given

    def absolute(self) -> "StartingPoint":
        """The same, found from any folder."""
        return self.model_copy(update={"path": self.path.expanduser().absolute()})


def check_weights_of(weights: str | None, path: Path | None) -> None:
    """Raises UserError for --from-weights without a model to start from."""
    if weights is not None and path is None:
        raise UserError(
            f"--from-weights {weights}: there is no model to start from",
            "name it: --from RUN, or leave --from-weights out",
        )


def named(given: Mapping[str, Any], name: str, alias: str) -> dict[str, Any]:
    """A dumped record with one key under the name that files have."""
    return {alias if key == name else key: value for key, value in given.items()}

"""What a preset names in `task.control`: the model that stays as it is, and the field of the data that leads it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from diffcli.config import Config, UserError
from diffcli.data.derived import MAKERS
from diffcli.fields import FieldSpec, Specs, listed
from diffcli.networks.conditioning import CondShape
from diffcli.networks.control import Branch, build_branch
from diffcli.networks.registry import AnyNetwork
from diffcli.tasks.conditioners.hints import HintConditioner


class ControlConfig(Config):
    """A picture that leads a trained model, which stays as it is (ControlNet).

    from: the run, checkpoint or import that is led; read when a run starts. Its weights then travel in every checkpoint.
    """

    model_config = ConfigDict(populate_by_name=True)

    source: Path | None = Field(
        None, alias="from", description="run, checkpoint or import that is led and stays as it is"
    )
    field: str = Field(
        "edges", pattern=r"^[a-z][a-z0-9_]*$", description="the field of the data that leads it: a picture or a mask"
    )
    widths: tuple[int, ...] | None = Field(
        None, description="channels of the convolutions that read the picture; null: as published"
    )

    @model_serializer(mode="wrap")
    def _named(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"from" if name == "source" else name: value for name, value in handler(self).items()}

    def reader(self, specs: Specs, key: str) -> HintConditioner:
        """What reads the field. key: of this record. Raises UserError where the data have no such picture."""
        return HintConditioner(self.field, picture(specs, self.field, key))

    def branch(
        self, network: AnyNetwork, shape: tuple[int, ...], cond: CondShape, reader: HintConditioner, pixels: int
    ) -> Branch:
        """A branch for networks that `network` builds for `shape` and `cond`. pixels: along the edge of an element of x.

        Raises UserError where there are too few widths to bring the picture to the size of the network's first layer.
        """
        try:
            return build_branch(network, shape, cond, reader.channels, pixels, self.widths or ())
        except ValueError as error:
            raise UserError(
                f"task.control: widths is {list(self.widths or ())}, but {error}", "leave widths out, or give so many"
            ) from None


def picture(specs: Specs, field: str, key: str) -> FieldSpec:
    """The field of the data that leads, as it is told to a branch. Raises UserError where it is lacking or no picture."""
    make = f": --set 'data.derived=[{{kind: {MAKERS[field]}}}]'" if field in MAKERS else " (data.derived)"
    remedy = (
        f"make it of the images{make}, choose data that store it beside them, or name another: --set {key}.field=NAME"
    )
    if field not in specs:
        raise UserError(
            f"{key}.field is '{field}', but the data has only: {', '.join(sorted(specs)) or 'no field'}", remedy
        )
    spec = specs[field]
    if spec.kind not in ("image", "mask"):
        raise UserError(f"{key}.field is '{field}', which is of kind {spec.kind}, no picture", remedy)
    if spec.kind == "mask" and not spec.class_count:
        raise UserError(
            f"{key}.field is '{field}', a mask of unknown classes", "make the set again, with its classes noted"
        )
    if len(spec.shape) != 3:
        raise UserError(f"{key}.field is '{field}', which is {listed(spec.shape)}, no still picture", remedy)
    return spec


def as_list(given: Any) -> Any:
    """`task.control` as a list, also where it is one record."""
    return [given] if isinstance(given, Mapping | ControlConfig) else given


def faults(controls: Sequence[ControlConfig], modelled: str) -> str | None:
    """What is wrong with several together, and after a semicolon what to do; None: nothing. modelled: the task's own field."""
    names = [each.field for each in controls]
    for name in names:
        if names.count(name) > 1:
            return f"control names the field '{name}' twice; name each field once"
        if name == modelled:
            return f"control names '{name}', which is what is modelled; name another field, such as edges"
    sources = {str(each.source) for each in controls if each.source is not None}
    if len(sources) > 1:
        return f"control names several models: {' and '.join(sorted(sources))}; lead one model in a run"
    return None

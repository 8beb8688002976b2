"""A trained diffusion model that pictures lead: the model stays as it is, branches beside it are trained (ControlNet).

The loss is that of the model. Conditions of the model may be dropped, the pictures never are. Source: see networks/control.py.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.fields import Batch, Specs
from diffcli.networks.conditioning import Conditioning, Hint
from diffcli.networks.control import Controlled
from diffcli.tasks.conditioners.conditioner import Conditioner
from diffcli.tasks.conditioners.hints import HintConditioner
from diffcli.tasks.control.gain import ControlGain
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.task import Network, Ranks
from diffcli.transfer import moved

GAIN, SINCE = "control_gain", "control_since"  # of the log
SAID = f"control took hold: the picture lowers the loss by more than noise; {SINCE} names the step"


class ControlledTask(DiffusionTask):
    """readers: what gives each branch its picture. scales: of the branches where images are drawn; one of 0 needs no picture."""

    measures = 0  # the codec is that of the model, which has measured its data

    def __init__(self, *parts: Any, readers: Sequence[HintConditioner]) -> None:
        super().__init__(*parts)
        self.readers = nn.ModuleList(readers)
        self.scales = (1.0,) * len(readers)
        self.origins: tuple[Mapping[str, Any], ...] = ({},) * len(readers)  # of branches from another checkpoint: which
        self.gain = ControlGain()
        self.looked: list[tuple[Tensor, Tensor]] = []  # in this update: position int64 (B,), gain (B,)
        self.looked_at = 0  # the step
        self.took_hold = False
        assert isinstance(self.denoiser.network, Controlled)

    @property
    def controlled(self) -> Controlled:
        return cast(Controlled, self.denoiser.network)

    @property
    def networks(self) -> tuple[Network, ...]:
        return (
            Network("base", self.controlled.base, frozen=True),
            Network("control", self.controlled.branches),
            Network("conditioners", self.conditioners, frozen=True),
            Network("codec", self.codec, frozen=True),
        )

    @property
    def named_readers(self) -> dict[str, HintConditioner]:
        """By their keys in a preset."""
        readers = cast(Sequence[HintConditioner], self.readers)
        return {f"task.control.{i}": reader for i, reader in enumerate(readers)}

    @property
    def idle(self) -> frozenset[str]:
        """The fields that nothing looks at, as the branch that reads them counts 0."""
        readers = cast(Sequence[HintConditioner], self.readers)
        return frozenset(reader.field for reader, scale in zip(readers, self.scales, strict=True) if scale == 0)

    @property
    def named_conditioners(self) -> dict[str, Conditioner]:
        return super().named_conditioners | self.named_readers

    def check(self, has: Specs) -> None:
        super().check(has)
        for key, reader in self.named_readers.items():
            try:
                reader.check_size(cast(tuple[int, ...], has[reader.field].shape), self.shape[1:])
            except UserError as error:
                raise UserError(
                    f"{key}: {error.problem}", f"name a field of that size: --set {key}.field=NAME"
                ) from None

    def measure(self, batches: object, ranks: Ranks) -> None:
        """Nothing: see `measures`."""

    def condition(
        self, batch: Batch, keep: Tensor, like: Tensor, seeds: Tensor | None = None, always_given: Collection[str] = ()
    ) -> Conditioning:
        found = super().condition(batch, keep, like, seeds, always_given)
        size = tuple(side * self.codec.downscale for side in like.shape[2:])
        hints: list[Hint | None] = []
        for reader, scale in zip(cast(Sequence[HintConditioner], self.readers), self.scales, strict=True):
            read = reader(batch, keep, like).hints if scale else None
            if read is not None:
                reader.check_size(read[0].picture.shape, size)
            hints.append(None if read is None else read[0]._replace(scale=scale))
        return found._replace(hints=tuple(hints))

    def beside(
        self,
        step: int,
        position: Tensor,
        cond: Conditioning,
        loss: Tensor,
        losses: Callable[[Conditioning], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        if not (self.training and self.log_every) or step % self.log_every:
            return {}
        with torch.no_grad():
            gained = losses(cond._replace(hints=None))["loss"] - loss.detach()
        self.looked.append((moved(position, gained.device), gained))
        self.looked_at = step
        return {GAIN: gained.mean(), SINCE: self.gain.since.float()}

    def after_update(self, ranks: Ranks) -> None:
        super().after_update(ranks)
        if not self.looked:
            return
        where = ranks.gather(torch.cat([position for position, _ in self.looked]))
        gained = ranks.gather(torch.cat([gained for _, gained in self.looked]))
        self.looked.clear()
        self.gain.take(gained[where.argsort()], self.looked_at)

    def remarks(self, step: int, values: dict[str, float]) -> list[str]:
        self.took_hold = self.took_hold or values.get(SINCE, 0) > 0
        return [SAID] if self.took_hold else []

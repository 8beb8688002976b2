"""The contract of everything that the engine can train.

A task owns every weight, lists its networks and the phases that train them, and knows its losses; it knows no rank, file or
optimizer. All its random draws follow from the batch: `stream` holds one seed a sample, so a result does not depend on how
samples were dealt to micro-batches or processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar, NamedTuple, Protocol, Self

from torch import Tensor, nn

from diffcli.diffusion.samplers import Sampler
from diffcli.fields import Batch, Specs, check_fields
from diffcli.optim import AnyCurve, AnyOptimizer
from diffcli.tasks.conditioners.conditioner import Conditioner


class Network(NamedTuple):
    """A part of a task that has weights, and its role in a run. A network that no phase trains is frozen as well.

    frozen: no phase may train it. averaged: sampling uses the average of its weights, not the last ones. samples: sampling
    needs it; files for sampling leave out the others, such as a discriminator.
    """

    name: str
    module: nn.Module
    frozen: bool = False
    averaged: bool = True
    samples: bool = True


class Phase(NamedTuple):
    """An update of some of a task's networks, once in a step. optimizer, curve: None stands for those of the preset's `train`.

    It is due at the steps first, first + every, first + 2 every, ...; the phases of a step run in the order of the list.
    Its curve counts its own updates. first_key: the key of the task that decides `first`, if its losses depend on that step;
    users change it there.
    """

    name: str
    networks: tuple[str, ...]
    optimizer: AnyOptimizer | None = None
    curve: AnyCurve | None = None
    first: int = 1
    every: int = 1
    first_key: str | None = None

    def due(self, step: int) -> bool:
        """Whether it is due at a step (1, 2, ...)."""
        return step >= self.first and (step - self.first) % self.every == 0

    def updates(self, step: int) -> int:
        """The number of its updates after a step, if it has begun."""
        return (step - self.first) // self.every + 1


class Ranks(Protocol):
    """The processes of a run, for collective operations of a task: all processes must make the same calls."""

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (n, ...), one for each sample of this process -> the rows of all processes, in the order of the batch."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes; values: of one shape and device on each."""


class Task(nn.Module, ABC):
    """The base of all tasks."""

    still: frozenset[str] = frozenset()  # the names of the networks that `freeze` was given,
    fixed: frozenset[str] = frozenset()  # and those of single parameters
    inherited: frozenset[str] = (
        frozenset()
    )  # parameters of another model, of which a checkpoint of low-rank changes holds none
    wide: ClassVar[bool] = False  # its activations exceed the range of fp16, so it computes in float32 instead
    skips: bool = False  # a step may use only some of the parameters, the same ones of every sample of its batch
    measures: int | None = 0  # samples of the training data that `measure` needs at least; None: all
    log_every: int = (
        0  # steps between lines of the log, for numbers that are not worth computing in every step; 0: none
    )
    measured: ClassVar[str] = "measuring the data"  # what `measure` does, for progress displays

    @property
    @abstractmethod
    def networks(self) -> tuple[Network, ...]:
        """Its networks, each with its role. Every parameter belongs to exactly one of them.

        Buffers outside of all networks, such as a history of losses, are state of training without an optimizer; both files of
        weights hold them.
        """

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases in the order of a step; by default one phase trains all networks that are not frozen."""
        return (Phase("main", tuple(network.name for network in self.networks if not network.frozen)),)

    def parameters_of(self, networks: Iterable[str]) -> list[nn.Parameter]:
        """The parameters of the networks with these names, in the order of the task's own."""
        names = set(networks)
        mine = {id(p) for n in self.networks if n.name in names for p in n.module.parameters()}
        return [p for p in self.parameters() if id(p) in mine]

    def trained_in(self, networks: Iterable[str]) -> list[nn.Parameter]:
        """`parameters_of` without those that are constants one by one."""
        constants = {id(self.get_parameter(name)) for name in self.fixed}
        return [p for p in self.parameters_of(networks) if id(p) not in constants]

    def keys_of(self, networks: Iterable[str]) -> set[str]:
        """The keys in its state dict of all that lies in the networks with these names."""
        names = set(networks)
        mine = {id(n.module) for n in self.networks if n.name in names}
        modules = self.named_modules(remove_duplicate=False)
        places = tuple(f"{name}." if name else "" for name, module in modules if id(module) in mine)
        return {key for key in self.state_dict() if key.startswith(places)}

    def sampled_state(self) -> dict[str, Tensor]:
        """Its state dict without the networks that sampling does not need, as in a file for sampling."""
        left_out = self.keys_of(n.name for n in self.networks if not n.samples)
        return {key: value for key, value in self.state_dict().items() if key not in left_out}

    def forget_unsampled(self) -> None:
        """Empties the networks that sampling does not need, for which a file for sampling has no weights."""
        mine = {id(n.module) for n in self.networks if not n.samples}
        for place in [name for name, module in self.named_modules(remove_duplicate=False) if id(module) in mine]:
            parent, _, name = place.rpartition(".")
            setattr(self.get_submodule(parent), name, nn.Module())

    def freeze(self, networks: Iterable[str], parameters: Iterable[str] = ()) -> None:
        """Freezes the networks with these names: without gradients and always in evaluation mode.

        parameters: names of single ones that are constants, too; what they are a part of stays as it is in all else.
        """
        self.still, self.fixed = frozenset(networks), frozenset(parameters)
        for parameter in [*self.parameters_of(self.still), *map(self.get_parameter, self.fixed)]:
            parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for network in self.networks if self.still else ():
            if network.name in self.still:
                network.module.eval()
        return self

    def hidden(self) -> set[nn.Parameter]:
        """The matrices between input and output: weights of linear layers but the last of a network, its `head`.

        Tables of classes are no linear layers, and the first layer of an image, patches or pixels, is a convolution.
        """
        heads = {id(getattr(module, "head", None)) for module in self.modules()}
        return {m.get_parameter("weight") for m in self.modules() if isinstance(m, nn.Linear) and id(m) not in heads}

    def only(self, networks: Collection[str]) -> AbstractContextManager[None]:
        """A context in which gradients reach the networks with these names alone."""
        mine = {id(p) for p in self.parameters_of(networks)}
        return constant([p for p in self.parameters() if id(p) not in mine and p.requires_grad])

    def comparable(self) -> AbstractContextManager[None]:
        """A context in which a sample's loss depends on that sample alone, not on its batch or on losses of the past."""
        return nullcontext()

    @property
    def network_to_compile(self) -> nn.Module:
        """The module that takes nearly all of a step's time; by default its first network."""
        return self.networks[0].module

    @property
    def networks_in_use(self) -> tuple[nn.Module, ...]:
        """The modules that take nearly all of the time when a checkpoint is used, each called as a whole."""
        return (self.network_to_compile,)

    @property
    @abstractmethod
    def reads(self) -> Specs:
        """The fields of the data that it reads, as it was built for them; other fields are not read from disk."""

    @property
    def unit(self) -> str:
        """What its batches consist of, in the plural, for people."""
        return "clips" if any(spec.kind == "clip" for spec in self.reads.values()) else "images"

    @property
    def trains_on(self) -> Specs:
        """Further fields, which its loss reads where the data have them, and nothing else does."""
        return {}

    @property
    def named_conditioners(self) -> dict[str, Conditioner]:
        """Its conditioners, each by its key in a preset."""
        return {}

    def check(self, has: Specs) -> None:
        """Raises UserError if data with these fields lack one that it reads."""
        check_fields(self.reads, has, "task")

    def advice(self, has: Specs) -> list[str]:
        """What is allowed with these fields but probably not meant, one sentence each."""
        key = {name: key for key, conditioner in self.named_conditioners.items() for name in conditioner.reads}
        return [
            f"the data have {found} classes of '{name}', the model {count}: the rest is never trained; "
            f"--set {key.get(name, 'task')}.num_classes={found} leaves them out"
            for name, spec in self.reads.items()
            if name in has
            and (count := spec.class_count) is not None
            and (found := has[name].class_count) is not None
            and found < count
        ]

    @abstractmethod
    def forward(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """The loss of the phase of this name at step 1, 2, ..., and its terms.

        Means over the batch: "loss", and named terms for the log; each ().
        """

    def begin(self) -> None:
        """Called once, before the first step of a new run: reads weights from elsewhere, or raises UserError."""

    def measure(self, batches: Iterable[Batch], ranks: Ranks) -> None:
        """Called once, before the first step of a new run: computes values of the data and keeps them in buffers.

        batches: this process's part of one pass over the training data, or of as much of it as `measures` says; not mirrored.
        """

    def after_update(self, ranks: Ranks) -> None:
        """Called once in each step, after all phases and micro-batches, to update state other than weights."""

    def remarks(self, step: int, values: dict[str, float]) -> list[str]:
        """Remarks for the user on the numbers of a step, which are named as in the log: sentences without numbers.

        A remark is printed when it becomes true, and is part of the lines of the log as long as it is true.
        """
        return []

    @abstractmethod
    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> Tensor | None:
        """Images (B, C, H, W) or clips (B, C, T, H, W) in [-1, 1] for the run log, one for each row of a batch of data.

        None if the task has none.
        """


@contextmanager
def constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Context in which these parameters get no gradient."""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)

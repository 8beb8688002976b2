"""The objective of a diffusion model: the times, the pairing of images and noise, and the cost of an error."""

from typing import NamedTuple

from diffcli.diffusion.coupling import Coupling
from diffcli.diffusion.schedule import AnySchedule, DiscreteSchedule
from diffcli.diffusion.times import LossAware, Times, UniformTimes
from diffcli.diffusion.weights import L2, AnyDistance, MinSnr, NoWeight, Velocity, Weight


class Objective(NamedTuple):
    """The times, the pairing of images and noise, and the cost of an error."""

    times: Times = UniformTimes()
    weight: Weight = NoWeight()
    distance: AnyDistance = L2()
    coupling: Coupling = "none"

    def check(self, schedule: AnySchedule) -> None:
        """Raises ValueError ("what is wrong; what to do") if its parts contradict the schedule or each other."""
        discrete = isinstance(schedule, DiscreteSchedule)
        if isinstance(self.times, LossAware) and not discrete:
            raise ValueError(
                f"times 'loss_aware' remembers the losses of every step, the {schedule.kind} schedule has none; "
                "set task.times.kind to stratified or logit_normal, or choose a discrete schedule"
            )
        if isinstance(self.weight, MinSnr | Velocity) and not isinstance(self.distance, L2):
            raise ValueError(
                f"weight '{self.weight.kind}' is stated for squared errors, but distance is {self.distance.kind}; "
                "set task.distance.kind to l2 or task.weight.kind to none"
            )
        if isinstance(self.weight, MinSnr) and discrete and schedule.leftover_signal == 0:
            raise ValueError(
                "weight 'min_snr' is 0 at t = 1 where no signal is left, so the step that sampling starts with would never be "
                "trained; set task.weight.kind to none"
            )

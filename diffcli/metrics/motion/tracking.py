"""The motion of one bright thing on black, such as a moving digit, measured from the pixels alone and alike for both sides.

Ink is the brightness above a quarter of the brightest pixel of a frame, so that faint noise of a drawn ground counts for nothing.
The place of the thing in a frame is the centroid of the ink, p_k (row, column) in pixels. Each axis alone:

    step          v_k = p_(k+1) - p_k
    walls         the lowest and the highest p of the reference; its longest step is its reach, m
    acceleration  |p_(k+1) - 2 p_k + p_(k-1)| where p_k is further than m from both walls, so nothing bounced
    reflection    |v_(k-1) + v_(k+1)| / (|v_(k-1)| + |v_(k+1)|) * 2 where the sign changes about the shortest step and a wall is
                  in reach: 0 if the thing leaves a wall as fast as it came

The extractor `motion` needs no network.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import FieldSpec, Remedies, Specs, check_fields
from diffcli.metrics.extractor import Extracted
from diffcli.metrics.keepers import rows_of
from diffcli.metrics.metric import Metric, Need, Role, Summaries, of_both

MOTION = "motion"
SAMPLES: tuple[Role, str] = ("samples", MOTION)
REFERENCE: tuple[Role, str] = ("reference", MOTION)
CLIPS: Specs = {"clip": FieldSpec("clip", (None, None, None, None))}
LEAST_FRAMES = 4  # three steps, of which the one between may be a reflection
FAINT = 0.25  # of the brightest pixel of a frame: below it brightness is no ink
BLANK = 0.1  # of white: a frame whose brightest pixel is below it shows nothing
NEAR = 2  # pixels, across, down or both, within which ink belongs together


class Motion(Metric):
    """Acceleration between walls and reflection at them, of the samples and, beside them, of the reference.

    Of clips of one thing on black. Units: pixels and frames.
    """

    kind: Literal["motion"] = "motion"
    needs: ClassVar[tuple[Need, ...]] = of_both(MOTION, rows_of("places"))
    least: ClassVar[int] = 1

    def compute(self, of: Summaries) -> dict[str, float]:
        """`acceleration`, `reflection` and `step`, each with its `_reference`, and `acceleration_ratio`, of samples to reference.

        Without those that nothing could be measured of: no frame was far from the walls, or nothing bounced.
        """
        places = of[REFERENCE].rows("places").double()
        room = Room.around(places)
        found, wanted = measured(of[SAMPLES].rows("places").double(), room), measured(places, room)
        if "acceleration" in found and wanted.get("acceleration"):
            found["acceleration_ratio"] = found["acceleration"] / wanted["acceleration"]
        return found | {f"{name}_reference": value for name, value in wanted.items()}

    def warnings(self, of: Summaries) -> list[str]:
        """Names what could not be measured."""
        scores = self.compute(of)
        reasons = {"acceleration": "no frame is far from the walls", "reflection": "nothing bounces off a wall"}
        return [
            f"motion: {name} is not known: in the {side} {reason}"
            for name, reason in reasons.items()
            for side, key in (("samples", name), ("reference", f"{name}_reference"))
            if key not in scores
        ]

    def lines(self, scores: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, str]:
        """Each measurement beside that of the reference."""

        def beside(name: str, form: str, unit: str) -> str:
            pair = [scores.get(key) for key in (name, f"{name}_reference")]
            shown = ["unknown" if value is None else f"{value:{form}}{unit}" for value in pair]
            return f"{shown[0]} (reference {shown[1]})"

        return {
            "motion": f"acceleration between walls {beside('acceleration', '.3g', ' pixels a frame^2')}",
            "walls": f"difference of speed before and after {beside('reflection', '.1%', '')}",
            "step": beside("step", ".3g", " pixels a frame"),
        }


class Room(NamedTuple):
    """The lowest and highest place, and the longest step, each (2,) for rows and columns."""

    low: Tensor
    high: Tensor
    reach: Tensor

    @classmethod
    def around(cls, places: Tensor) -> "Room":
        """The room of places (n, T, 2), as the module says."""
        every = places.flatten(0, 1)
        return cls(every.amin(0), every.amax(0), places.diff(dim=1).abs().flatten(0, 1).amax(0))

    def near(self, places: Tensor) -> Tensor:
        """Whether a wall is in reach, bool (..., 2)."""
        return torch.minimum(places - self.low, self.high - places) <= self.reach


def accelerations(places: Tensor, room: Room) -> Tensor:
    """Every acceleration between walls of places (n, T, 2), pixels a frame^2, in one row."""
    bend = places[:, 2:] - 2 * places[:, 1:-1] + places[:, :-2]
    return bend.abs()[~room.near(places[:, 1:-1])]


def reflections(places: Tensor, room: Room) -> tuple[Tensor, Tensor]:
    """Of every reflection in places (n, T, 2): |v before + v after|, and the mean of both speeds; pixels a frame, in rows."""
    step = places.diff(dim=1)
    before, between, after = step[:, :-2], step[:, 1:-1].abs(), step[:, 2:]
    turned = (before * after < 0) & (between <= before.abs()) & (between <= after.abs())
    turned &= room.near(places[:, 1:-2]) | room.near(places[:, 2:-1])
    return (before + after).abs()[turned], (before.abs() + after.abs())[turned] / 2


def measured(places: Tensor, room: Room) -> dict[str, float]:
    """The scores of places float64 (n, T, 2), without those that nothing could be measured of."""
    lost, speed = reflections(places, room)
    bends = accelerations(places, room)
    found = {"acceleration": bends.mean().item()} if len(bends) else {}
    found |= {"reflection": (lost.sum() / speed.sum()).item()} if len(lost) else {}
    return found | {"step": places.diff(dim=1).norm(dim=-1).mean().item()}


class MotionMeasures:
    """The extractor `motion`: where the ink of each frame is, and in how many pieces."""

    reads = CLIPS
    limit: int | None = None
    unit = "clips"
    classes: tuple[str, ...] | None = None

    def __init__(self, frames: int = 1) -> None:
        self.gives: Mapping[str, tuple[int, ...]] = {"places": (frames, 2), "pieces": (frames,)}
        self.notes: list[str] = []

    def sized(self, frames: int) -> "MotionMeasures":
        """The same for clips of so many frames."""
        return MotionMeasures(frames)

    def check(self, name: str, fields: Specs) -> None:
        check_clips(name, fields, "--metrics motion")
        frames = fields["clip"].shape[1] if fields["clip"].shape else None
        if frames is not None and frames < LEAST_FRAMES:
            problem = f"{name}: clips of {frames} frame{'s' * (frames != 1)} are too short for --metrics motion"
            raise UserError(problem, f"score clips of at least {LEAST_FRAMES} frames")

    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """`places` (B, T, 2), the centroids, and `pieces` (B, T), both float32."""
        amount = ink(fields["clip"])
        return {"places": centroids(amount), "pieces": pieces(amount > 0).float()}

    def describe(self) -> dict[str, Any]:
        return {}


def check_clips(name: str, fields: Specs, who: str) -> None:
    """Raises UserError where a side of this name has no clips. who: what reads them."""
    hint = "give a side of clips, such as moving-digits:test, or a folder of video files"
    check_fields(CLIPS, fields, f"{name}: {who}", {"clip": Remedies(lacking=hint, kind=hint)})


def ink(clips: Tensor) -> Tensor:
    """The ink of clips uint8 (B, C, T, H, W): (B, T, H, W) float32 in [0, 1]; of channels the mean."""
    level = clips.float().mean(1) / 255
    brightest = level.amax((-2, -1), keepdim=True)
    return torch.where(brightest < BLANK, 0.0, level - FAINT * brightest).clamp(min=0)


def centroids(amount: Tensor) -> Tensor:
    """Centre of mass (row, column) of ink (..., H, W) in pixels from the first: (..., 2); the middle where there is none."""
    height, width = amount.shape[-2:]
    total = amount.sum((-2, -1))
    down = amount.sum(-1) @ torch.arange(height, device=amount.device, dtype=amount.dtype)
    across = amount.sum(-2) @ torch.arange(width, device=amount.device, dtype=amount.dtype)
    middle = amount.new_tensor([(height - 1) / 2, (width - 1) / 2])
    found = torch.stack([down, across], -1) / total.clamp(min=torch.finfo(amount.dtype).tiny)[..., None]
    return torch.where((total > 0)[..., None], found, middle)


def pieces(mask: Tensor) -> Tensor:
    """How many things a mask (..., H, W) shows, int64 (...): pixels within NEAR of each other are of one.

    Each pixel takes the highest number within its neighbourhood until nothing changes; a thing is where a pixel keeps its own.
    """
    *outer, height, width = mask.shape
    inside = mask.reshape(-1, 1, height, width)
    number = torch.arange(1, height * width + 1, device=mask.device, dtype=torch.float32).view(1, 1, height, width)
    highest = torch.where(inside, number, 0.0)
    while True:
        further = torch.where(inside, F.max_pool2d(highest, 2 * NEAR + 1, 1, NEAR), 0.0)
        if torch.equal(further, highest):
            return ((highest == number) & inside).sum((1, 2, 3)).view(outer)
        highest = further

"""Every command that README, docs and `--help` show is run, in the order of its page, with tiny steps and stand-ins for data."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from diffcli import preset as presets
from tests.conftest import Cli
from tests.documented.reading import ALL, COMMAND, PAGES, Shown, shown
from tests.documented.shrinking import options, preset_of, small
from tests.documented.stand_ins import CLIP, EMBEDDED, FILES, OF_PAGE, TABLES, captioned, table
from tests.prep.server import WebServer, serving

# What stands for other words, and what is run in its place
FORMS = {
    "diffcli info PATH": "diffcli info runs/digits",
    "diffcli resume RUN": "diffcli resume runs/digits",
    "diffcli sample RUN": "diffcli sample runs/digits",
    "diffcli fid --ckpt RUN --metrics psnr": "diffcli fid --ckpt runs/mnist-vae --metrics psnr",
    "diffcli prep-data KIND SOURCE --out DIR": "diffcli prep-data folder PICTURES --out prepared",
    "diffcli prep-data KIND": "diffcli prep-data folder",
    "diffcli ema RUN --rate 0.9999 --out DIR": "diffcli ema runs/rates --rate 0.9999 --out rate",
    "diffcli ema RUN --std 0.05,0.1 --out DIR": "diffcli ema runs/power --std 0.05,0.1 --out std",
    "diffcli import FOLDER --out DIR": "diffcli import FOLDER_OF_DIFFUSERS --out imported",
    "diffcli import FILE|FOLDER --out DIR": "diffcli import FOLDER_OF_STABLE_DIFFUSION --out again",
    "diffcli export --ckpt PATH --to diffusers --out DIR": "diffcli export --ckpt runs/digits --to diffusers --out out",
    "diffcli export --ckpt RUN --to diffusers --out DIR": "diffcli export --ckpt runs/cifar10-class --to diffusers --out out",
    "diffcli fid A B --features runs/NAME": "diffcli fid pictures pictures --features runs/digits-classifier",
    "diffcli fid --ckpt RUN --ref data/cifar10:test --features runs/cifar10-classifier --n 1000 --guidance 1 "
    "--batch-size 250 --sampler unipc --steps 12": "diffcli fid --ckpt runs/cifar10-class --ref data/cifar10:test "
    "--features runs/cifar10-classifier --n 4 --guidance 1 --batch-size 250 --sampler unipc --steps 12",
}
# What says what is missing, which is an error with its remedy
SAYING = ("diffcli prep-data KIND", "diffcli prep-data pairs")
# What cannot run on every machine, with the reason
STORED = "an imported text-to-image model; tests/engine/run/origin/test_imported_models.py trains a small one so"
ELSEWHERE = {
    "diffcli prep-data shards --out SET --embed clip-tokens --encoder runs/imported": STORED,
    "diffcli train --preset mine.yaml --data SET --set task.conditioners.0.cached=true": STORED,
    "diffcli fid --ckpt runs/cifar10-vqvae --ref data/cifar10-shards:test --n 5000 --metrics psnr,ssim,lpips,fid": (
        "weights of LPIPS and Inception, which are not in the package"
    ),
    "diffcli import FILE.pt --as imagenet64-adm --out DIR": "a file of 296 M parameters; tests/interop reads small ones",
    "diffcli import FILE.pt --as dit-xl-2 --out DIR": "a file of 675 M parameters; tests/interop reads small ones",
}
DRAWN = {"samples.npz": "sample", "denoise.gif": "gif"}  # by which command
RUNS = {  # those that a page takes for granted and that are not called as a preset is
    "demo": ["digits"],
    "demo-classifier": ["digits-classifier"],
    "my-latent": ["celeba-256-latent"],
    "power": ["digits", "--set", "train.ema={kind: power, every: 1}"],
    "rates": ["digits", "--set", "train.ema=[0.9999, 0.99]"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with serving() as found:
        yield found


class Folder:
    """Where the commands of a page are run, and what they find there."""

    def __init__(self, page: str, root: Path, shelf: Path, cli: Cli, server: WebServer) -> None:
        self.files = FILES | OF_PAGE.get(page, {})
        self.root, self.shelf, self.cli, self.server = root, shelf, cli, server

    def run(self, command: Shown) -> str | None:
        """Runs a command as the page has it; returns what it says where it fails."""
        words = command.words(FORMS.get(command.line))
        self.provide(words)
        done = self.cli(*small(words))
        if command.output is not None:
            (self.root / command.output).write_text(done.out)
        expected = 2 if command.line in SAYING else 0
        return None if done.code == expected else f"{command.line}\n  as: {' '.join(small(words))}\n{done.err}"

    def provide(self, words: Sequence[str]) -> None:
        """Makes the files and runs that a command names and that no earlier one of the page made."""
        made = {*options(words, "--out"), *options(words, "--run-dir")}
        names = [word.rpartition("=")[2].partition(":")[0] for word in words]
        names += ["data/mnist"] if "mnist:test" in words else []
        for name in [*names, *(needs(words) if words[0] == "train" else ())]:
            if name not in made:
                self.make(name)
        if words[0] == "train":  # a page may train a preset twice, of other data: with a reader those are other folders
            run = next(iter(options(words, "--run-dir")), f"runs/{preset_of(words).name}")
            shutil.rmtree(self.root / run, ignore_errors=True)

    def make(self, name: str) -> None:
        """Makes a stand-in of this name, or that of the folder it lies in, if there is one and no command made it."""
        place = next((each for each in self.files if name == each or name.startswith(f"{each}/")), name)
        known = place in {*self.files, *TABLES, *EMBEDDED, *DRAWN} or place.startswith("runs/")
        if not known or (self.root / place).exists():
            return
        (self.root / place).parent.mkdir(parents=True, exist_ok=True)
        if place in self.files:
            self.files[place](self.root / place)
        elif place in TABLES:
            table(self.root / place, self.server)
        elif place in EMBEDDED:
            self.make(CLIP)
            captioned(self.root / place)
            self.done("prep-data", "shards", "--out", place, "--embed", "clip", "--encoder", CLIP)
        elif place in DRAWN:
            self.make("runs/digits")
            self.done(DRAWN[place], "runs/digits", "--n", "4", "--out", place)
        else:
            self.borrow(place)

    def done(self, *words: str) -> None:
        """Runs what a page takes for granted."""
        outcome = self.cli(*words)
        assert outcome.code == 0, f"{words}\n{outcome.err}"

    def borrow(self, run: str) -> None:
        """A run of the preset that is called like it; trained once for all pages."""
        kept = self.shelf / run
        if not kept.exists():
            preset, *more = RUNS.get(Path(run).name, [Path(run).name])
            data = {"mnist": "DIR", "cifar10": "DIR", "shards": "data/imagenet256"}.get(presets.load(preset).data.kind)
            more += ["--data", data] if data else []
            words = ["train", "--preset", preset, "--run-dir", str(kept), *more]
            self.provide(words)
            self.done(*small(words))
        shutil.copytree(kept, self.root / run)


def needs(words: Sequence[str]) -> list[str]:
    """Other sets and runs that the preset names which these words train."""
    tree = yaml.safe_load(presets.dump(preset_of(words)))
    data, codec = tree["data"], tree["task"].get("codec") or {}
    leads = [each.get("from") for each in tree["task"].get("control") or ()]
    return [*filter(None, [*(data.get("more") or ()), data.get("validation"), codec.get("from"), *leads])]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs(
    page: str, tmp_path: Path, shelf: Path, cli: Cli, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder(page, tmp_path, shelf, cli, server)
    commands = [command for command in shown(page) if command.line not in ELSEWHERE]
    failed = [told for told in map(folder.run, commands) if told is not None]
    assert not failed, "\n\n".join(failed)


def test_what_is_replaced_or_left_out_is_still_shown() -> None:
    lines = {command.line for command in ALL}
    assert sorted({*FORMS, *SAYING, *ELSEWHERE} - lines) == []


def test_no_command_is_overlooked() -> None:
    """Found another way: wherever a page has `diffcli` and the name of a command, but for what torchrun starts."""
    names = "|".join(sorted({command.line.split()[1] for command in ALL}))
    for page, text in PAGES.items():
        spans = [found.span() for found in COMMAND.finditer(text)]
        places = [found.start() for found in re.finditer(rf"(?<!-m -- )\bdiffcli\s+(?:{names})\b", text)]
        assert [text[place : place + 60] for place in places if not any(a <= place < b for a, b in spans)] == [], page


def test_what_stands_for_other_words_is_never_run_as_it_is() -> None:
    """Words in capitals are files that tests make, or are replaced."""
    capital = re.compile(r"\b[A-Z][A-Z_]{1,}\b(?!\.)")
    for command in ALL:
        if command.line not in ELSEWHERE:
            words = command.words(FORMS.get(command.line))
            names = {word.partition("/")[0] for word in words if capital.fullmatch(word.partition("/")[0])}
            assert names <= {*FILES}, command.line

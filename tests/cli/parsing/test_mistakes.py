"""What the parser refuses is said in the program's own words, with what to type."""

import pytest

from tests.conftest import Cli

THEIRS = ("Input should", "unable to parse", "Invalid value", "is not a valid", "Got unexpected", "Possible options")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --preset digits --lr 3", ["--lr", "--set train.optimizer.lr=3"]),
        ("train --preset digits --learning_rate=3", ["--set train.optimizer.lr=3"]),
        ("train --preset digits --batch-size 8", ["--set train.batch_size=8"]),
        ("train --preset digits --epochs 2", ["--epochs", "--steps N", "--dry-run"]),
        ("train --preset digits --stepz 2", ["--stepz", "--steps"]),
        ("train digits", ["--preset", "diffcli train --preset digits"]),
        ("train --preset", ["--preset", "VALUE"]),
        ("resume run --data photos", ["--data", "--set data.root=photos"]),
        ("sample run --scale 1000", ["--scale 1000", "64"]),
        ("gif run --scale 1000", ["--scale 1000", "64"]),
        ("resume run --lr 3", ["--lr", "--set train.optimizer.lr=3"]),
        ("resume", ["RUN_DIR is missing", "diffcli resume RUN_DIR"]),
        ("presets new", ["NAME is missing", "diffcli presets new NAME --data DIR"]),
        ("presets new photos --task classifier", ["--data is missing", "diffcli presets new NAME --data DIR"]),
        ("presets new --data=photos", ["NAME is missing", "diffcli presets new NAME --data photos"]),
        ("presets new photos --data photos --size 16", ["--size", "--preset NAME.yaml --set data.size=16"]),
        ("presets new photos --data photos --lora", ["--lora", "--preset NAME.yaml --set train.lora.rank=8"]),
        ("train --preset digits --lora", ["--lora", "--set train.lora.rank=8"]),
        ("train --preset digits --lora-rank 4", ["--lora-rank", "--set train.lora.rank=4"]),
        ("sample run --lora other --lora-scale 0.5", ["--lora-scale", "--lora RUN:0.5"]),
        ("sample run --cfg-scale 3", ["--cfg-scale", "--guidance 3"]),
        ("sample run --num-samples 3", ["--num-samples", "--n 3"]),
        ("sample run --n many", ["--n many", "whole number"]),
        ("sample run --n 0", ["--n 0", "at least 1"]),
        ("sample run --guidance much", ["--guidance much", "must be a number"]),
        ("sample run --ddim-eta 2", ["--ddim-eta 2", "1"]),
        ("sample run --device cdua", ["--device", "'cdua'", "did you mean 'cuda'?"]),
        ("sample run other", ["'other'", "diffcli sample --help"]),
        ("presets shw", ["shw", "did you mean 'show'?"]),
    ],
)
def test_a_mistake_of_the_parser_names_flag_value_and_remedy(cli: Cli, line: str, words: list[str]) -> None:
    said = cli(*line.split()).refused(*words)
    assert not any(word in said for word in THEIRS), said

"""A run of low-rank changes that also freezes some of what it trains: its checkpoints hold that as well."""

from pathlib import Path

from diffcli.networks.lora import low_rank, merged, of_change
from tests.engine.lora.test_lora_runs import LORA, base, part, run_to, same, weights

__all__ = ["base"]  # a fixture


def test_what_is_frozen_after_a_while_keeps_what_it_has_learned(base: Path, tmp_path: Path) -> None:
    lora = LORA | {"whole": ["conditioners.0"]}
    run = run_to(tmp_path / "run", 2, base, train__lora=lora)
    before = {name: part(run, name) for name in ("ema", "task")}
    frozen = ["conditioners.0", "network.down"]
    run_to(run, 4, base, train__lora=lora, train__freeze=frozen)
    after = {name: part(run, name) for name in ("ema", "task")}
    names = [name for name in before["task"] if ".down." in name.partition(".lora.")[0] or name.startswith("cond")]
    assert {of_change(name) for name in names} == {True, False}
    for name in ("ema", "task"):
        assert after[name].keys() == before[name].keys()
        assert all(after[name][key].equal(before["task"][key]) for key in names)
    drawn = weights(run)
    same(drawn, merged({**part(base, "ema"), **after["ema"]}, low_rank(after["ema"])))
    begun = run_to(tmp_path / "begun", 1, base, train__lora=lora, train__freeze=frozen)
    assert part(begun, "ema").keys() == before["ema"].keys()

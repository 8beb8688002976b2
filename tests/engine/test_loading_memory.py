"""Loading takes the memory of the weights, once: no second copy, and no random weights first."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffcli import checkpoint
from diffcli import preset as presets
from tests.conftest import environment

LOAD = """
import sys
from pathlib import Path
import torch
from diffcli.engine.draw.sample import load_model

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
load_model(Path(sys.argv[1]), torch.device("cpu"), precision="fp32")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_the_peak_of_loading_is_that_of_the_weights(tmp_path: Path) -> None:
    preset = presets.load("cifar10")
    record = {"preset": preset.model_dump(mode="json"), "step": 1, "classes": None}
    state = preset.task.build(preset.specs).state_dict()
    folder = checkpoint.save_average(tmp_path / "model", state, record)
    size = (folder / "ema.safetensors").stat().st_size
    del state
    done = subprocess.run([sys.executable, "-c", LOAD, folder], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.9 * size < int(done.stdout) < 1.5 * size

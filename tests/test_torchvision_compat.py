"""The shim in processes of its own: what torch knows of torchvision's operators cannot be undone within one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(code: str, *paths: Path) -> str:
    """Standard output of a fresh interpreter that finds modules in `paths` first."""
    lines = ["import sys", *(f"sys.path.insert(0, {str(path)!r})" for path in (ROOT, *paths)), code]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def broken_torchvision(tmp_path: Path) -> Path:
    """A package whose compiled library cannot be loaded and whose import needs `nms`, as the PyPI wheel beside CPU torch."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "_C.so").write_bytes(b"not a library")
    (package / "__init__.py").write_text(
        "import torch\n"
        "for name in ('nms', 'qnms'):\n"
        "    torch.library.register_fake(f'torchvision::{name}')(lambda dets, scores, iou_threshold: dets)\n"
    )
    return tmp_path


def test_torchvision_imports_after_the_shim():
    assert (
        python("import diffcli.torchvision_compat, torchvision.transforms.v2, torchvision.models; print('fine')")
        == "fine"
    )


def test_missing_operators_are_declared_once_and_stay_uncallable(broken_torchvision: Path):
    code = (
        "from diffcli.torchvision_compat import install\nimport torch\n"
        "print(hasattr(torch.ops.torchvision, 'nms'), hasattr(torch.ops.torchvision, 'qnms'), install())\n"
        "import torchvision\nprint(install())\n"
        "try:\n    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        "except NotImplementedError:\n    print('refused')"
    )
    assert python(code, broken_torchvision).splitlines() == ["True True ()", "()", "refused"]


@pytest.mark.slow
def test_without_the_shim_that_torchvision_fails(broken_torchvision: Path):
    code = "try:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)"
    assert "operator torchvision::nms does not exist" in python(code, broken_torchvision)


@pytest.mark.slow
def test_nothing_is_declared_where_the_operators_exist():
    code = (
        "import torch\n"
        "for name in ('nms', 'qnms'):\n"
        "    torch.library.define(f'torchvision::{name}', '(Tensor a) -> Tensor')\n"
        "from diffcli.torchvision_compat import install\n"
        "print(install(), torch.ops.torchvision.nms.default._schema)"
    )
    assert python(code) == "() torchvision::nms(Tensor a) -> Tensor"


@pytest.mark.slow
def test_a_library_that_loads_defines_its_own(tmp_path: Path):
    """The library is asked first: declaring what it declares again later would be an error."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_C.so").write_text("")
    code = (
        "import torch\nloaded = []\ntorch.ops.load_library = loaded.append\n"
        "import diffcli.torchvision_compat as compat\n"
        "print(len(loaded), loaded[0].endswith('_C.so'), hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert python(code, tmp_path) == "1 True False"


@pytest.mark.slow
def test_nothing_is_declared_without_torchvision():
    code = (
        "import importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torchvision' else find(name, *rest)\n"
        "import diffcli.torchvision_compat, torch\nprint(hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert python(code) == "False"

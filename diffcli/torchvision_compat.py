"""Makes `import torchvision` work where its compiled operators cannot be loaded; import this module before torchvision.

The torchvision wheel of PyPI is compiled against the CUDA build of torch. Beside a CPU-only torch its library `_C` does not
load, and `import torchvision` then fails with `operator torchvision::nms does not exist`, because its Python code attaches
shape rules to two operators that nobody defined. Declaring those two schemas is enough for the parts written in Python
(datasets, transforms.v2, utils, models). Calling a declared operator still fails, as it should: nothing implements it.

Where the compiled operators load, or torchvision is imported already, nothing is declared.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec

import torch

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def install() -> tuple[str, ...]:
    """Declares the missing operators and returns their names; empty where there is nothing to do."""
    package = find_spec("torchvision")
    if "torchvision" in sys.modules or package is None or _load_compiled(package):
        return ()
    missing = tuple(name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name))
    for name in missing:
        torch.library.define(f"torchvision::{name}", SCHEMAS[name])
    return missing


def _load_compiled(package: ModuleSpec) -> bool:
    """Loads torchvision's own operators, exactly as its import would; a second load of the same file changes nothing.

    Asking first matters: declaring a schema that the library declares again later would be an error.
    """
    library = PathFinder.find_spec("_C", package.submodule_search_locations)
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except (OSError, ImportError):
        return False
    return True


install()

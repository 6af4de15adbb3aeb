"""What the tests of the examples share."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def load_example() -> Iterator[Callable[[str], ModuleType]]:
    """`load_example(name)`: an example as a module, for the test to call its functions."""
    loaded = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # data classes look their module up
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    torch.manual_seed(0)
    yield load
    for name in set(loaded):
        del sys.modules[name]

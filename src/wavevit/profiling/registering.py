"""Models of a user's own file, under names that timm knows."""

import importlib.util
import sys
from pathlib import Path

import timm


def register_models(path: Path) -> None:
    """Runs a Python file that registers models with timm; a file that has been run is left alone.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no Python file, or registers nothing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--register: no such file: {path}")
    if path.suffix != ".py":
        raise ValueError(f"--register expects a Python file, got {path}")
    # timm finds a function's module by its name, and so does what is compiled.
    name = f"wavevit_registered_{path.stem}"
    if getattr(sys.modules.get(name), "__file__", None) == str(path.resolve()):
        return
    before = set(timm.list_models())
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ValueError(f"--register: {path}: {type(error).__name__}: {error}") from error
        if before == set(timm.list_models()):
            raise ValueError(
                f"--register: {path} registers no model; decorate functions with "
                "timm.models.register_model"
            )
    except BaseException:
        del sys.modules[name]
        raise

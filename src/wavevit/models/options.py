"""Options of detectors and segmenters that are built by name."""

import difflib
import inspect
from collections.abc import Iterable


def check_options(name: str, cls: type, options: Iterable[str]) -> None:
    """Refuses options that a class does not take, with the nearest one that it does.

    Args:
        name: What the user calls the class.
        cls: Its keyword-only arguments are the options.
        options: Names to check.

    Raises:
        ValueError: One of them is unknown.
    """
    parameters = inspect.signature(cls).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(f"{name} has no option {option!r}{hint} It takes: {', '.join(known)}")

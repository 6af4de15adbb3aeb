"""What options of detectors and segmenters may be, checked before anything is built from them."""

from collections.abc import Sequence


def check_whole(least: int, **options: object) -> None:
    """Refuses options that are no whole numbers, or less than that.

    Args:
        least: The least value.
        **options: Values by the names of the options.

    Raises:
        ValueError: One is refused.
    """
    for name, value in options.items():
        if type(value) is not int or value < least:
            raise _wrong(name, f"a whole number from {least} on", value)


def check_share(**options: object) -> None:
    """Refuses options that are no numbers in [0, 1].

    Args:
        **options: Values by the names of the options.

    Raises:
        ValueError: One is refused.
    """
    for name, value in options.items():
        if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
            raise _wrong(name, "a number in [0, 1]", value)


def check_positive(**options: object) -> None:
    """Refuses options that are no numbers above 0, or infinite.

    Args:
        **options: Values by the names of the options.

    Raises:
        ValueError: One is refused.
    """
    for name, value in options.items():
        if not _is_positive(value):
            raise _wrong(name, "a number above 0", value)


def check_all_positive(**options: object) -> None:
    """Refuses options that are no lists of numbers above 0, or empty.

    Args:
        **options: Values by the names of the options.

    Raises:
        ValueError: One is refused.
    """
    for name, value in options.items():
        is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
        if not is_list or not all(map(_is_positive, value)):  # type: ignore[call-overload]
            raise _wrong(name, "a list of numbers above 0", value)


def check_switch(**options: object) -> None:
    """Refuses options that are neither true nor false.

    Args:
        **options: Values by the names of the options.

    Raises:
        ValueError: One is refused.
    """
    for name, value in options.items():
        if type(value) is not bool:
            raise _wrong(name, "true or false", value)


def check_weight(**options: object) -> None:
    """Refuses options that are no numbers from 0 on, or infinite.

    Args:
        **options: Values by the names of the options.

    Raises:
        ValueError: One is refused.
    """
    for name, value in options.items():
        if not _is_weight(value):
            raise _wrong(name, "a number from 0 on", value)


def check_weights(length: int, **options: object) -> None:
    """Refuses options that are no lists of numbers from 0 on, or all 0.

    Args:
        length: How many numbers there are to be.
        **options: Values by the names of the options.

    Raises:
        ValueError: One is refused.
    """
    for name, value in options.items():
        expected = f"a list of {length} numbers from 0 on, not all of them 0"
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _wrong(name, expected, value)
        if len(value) != length or not all(map(_is_weight, value)) or not any(value):
            raise _wrong(name, expected, value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_positive(value: object) -> bool:
    # Infinity and NaN fail one of the two.
    return _is_number(value) and 0 < value < float("inf")  # type: ignore[operator]


def _is_weight(value: object) -> bool:
    return _is_number(value) and 0 <= value < float("inf")  # type: ignore[operator]


def _wrong(name: str, expected: str, value: object) -> ValueError:
    return ValueError(f"the option {name} must be {expected}, got {value!r}")

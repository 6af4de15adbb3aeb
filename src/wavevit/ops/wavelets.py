"""Filter coefficients and extension modes, by their PyWavelets names."""

import difflib
from collections.abc import Callable
from typing import NamedTuple

import torch

MODES = (
    "symmetric",
    "reflect",
    "periodization",
    "zero",
    "constant",
    "periodic",
    "smooth",
    "antisymmetric",
    "antireflect",
)
HAAR_NAMES = ("haar", "db1")
_INSTALL = 'pip install "wavevit[wavelets]"'


class FilterBank(NamedTuple):
    """The four filters of a discrete wavelet, all of one even length."""

    dec_lo: tuple[float, ...]
    dec_hi: tuple[float, ...]
    rec_lo: tuple[float, ...]
    rec_hi: tuple[float, ...]


_S = 0.7071067811865476
HAAR = FilterBank((_S, _S), (-_S, _S), (_S, _S), (_S, -_S))


def is_haar(wavelet: str) -> bool:
    """Whether the wavelet is Haar, under either name.

    Args:
        wavelet: Any name.

    Returns:
        True for "haar" and "db1".
    """
    return wavelet in HAAR_NAMES


def check_wavelet(wavelet: str) -> None:
    """Refuses a name that is not a discrete wavelet's; only Haar is known without PyWavelets.

    Args:
        wavelet: The name to check.

    Raises:
        TypeError: The wavelet is not named by a string.
        ValueError: No discrete wavelet has this name.
        ImportError: PyWavelets is missing and the wavelet is not Haar.
    """
    if not isinstance(wavelet, str):
        raise TypeError(
            f"wavelet must be a name such as 'haar' or 'db4', got {type(wavelet).__name__}; "
            "pass pywt.Wavelet(...).name"
        )
    if not is_haar(wavelet):
        filter_bank(wavelet)


def _filter_bank(wavelet: str) -> FilterBank:
    """The filters of a discrete wavelet; only Haar is known without PyWavelets.

    Args:
        wavelet: A name of `pywt.wavelist(kind="discrete")`, such as "haar", "db4" or "bior2.2".

    Returns:
        The decomposition and reconstruction filters.

    Raises:
        ValueError: No discrete wavelet has this name.
        ImportError: PyWavelets is missing and the wavelet is not Haar.
    """
    if wavelet in HAAR_NAMES:
        return HAAR
    try:
        import pywt
    except ImportError as error:
        raise ImportError(
            f"wavelet {wavelet!r} needs PyWavelets for its coefficients (only 'haar' does not); "
            f"install it with: {_INSTALL}"
        ) from error
    known = pywt.wavelist(kind="discrete")
    if wavelet not in known:
        raise ValueError(_unknown("discrete wavelet", wavelet, ["haar", *known]))
    found = pywt.Wavelet(wavelet)
    return FilterBank(*(tuple(map(float, taps)) for taps in found.filter_bank))


def check_mode(mode: str) -> None:
    """Refuses an extension mode that is not one of `MODES`.

    Args:
        mode: The name to check.

    Raises:
        ValueError: No mode has this name.
    """
    if mode not in MODES:
        raise ValueError(_unknown("mode", mode, list(MODES)))


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = list(dict.fromkeys(difflib.get_close_matches(str(name), known, n=4, cutoff=0.4)))
    hint = f"; nearest: {', '.join(near)}" if near else f"; some: {', '.join(known[:9])}"
    return f"unknown {kind} {name!r}{hint}"


# A compiler takes the filters as they are, without following the import of PyWavelets.
filter_bank: Callable[[str], FilterBank] = torch.compiler.assume_constant_result(_filter_bank)

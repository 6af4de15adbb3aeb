"""The wavelet transforms: known answers, PyWavelets, inverse, gradients, dtypes, errors."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from wavevit.ops import dwt2, haar_dwt2, haar_idwt2, idwt2
from wavevit.ops.dwt_reference import reference_dwt2, reference_idwt2
from wavevit.ops.wavelets import MODES, filter_bank

try:
    import pywt
except ImportError:
    pywt = None  # type: ignore[assignment]

needs_pywt = pytest.mark.skipif(pywt is None, reason="PyWavelets is not installed")
# torch's own forward mode sets itself up with a deprecated part of torch.
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script")
WAVELETS = ("haar", "db2", "db4", "sym4", "coif2", "bior2.2", "bior4.4", "rbio3.1")
SIZES = ((8, 8), (6, 9), (7, 5), (1, 6), (5, 1), (1, 1))
# fp64 sums of at most a few dozen terms near 1: rounding stays near 1e-15.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def flat(bands) -> list[Tensor]:
    ll, *levels = bands
    return [ll, *(band for details in levels for band in details)]


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(0), dtype=torch.float64).to(dtype)


# ---- Known answers


def test_two_by_two_patch_gives_the_published_bands():
    a, b, c, d = 1.0, 2.0, 5.0, 11.0
    ll, (lh, hl, hh) = dwt2(torch.tensor([[a, b], [c, d]]))
    assert ll.item() == (a + b + c + d) / 2
    assert lh.item() == (a + b - c - d) / 2, "low along W, high along H"
    assert hl.item() == (a - b + c - d) / 2, "high along W, low along H"
    assert hh.item() == (a - b - c + d) / 2


def test_horizontal_stripes_show_in_lh_only():
    stripes = torch.tensor([1.0, -1.0]).repeat(4)[:, None].expand(8, 8)
    ll, (lh, hl, hh) = dwt2(stripes)
    assert (lh == 2).all()
    assert not torch.stack((ll, hl, hh)).any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_packed_channels_are_band_major(channels_last: bool):
    x = image(2, 3, 4, 6)
    expected = torch.cat(flat(dwt2(x)), 1)
    if channels_last:
        packed = haar_dwt2(x.permute(0, 2, 3, 1).contiguous(), True).permute(0, 3, 1, 2)
    else:
        packed = haar_dwt2(x)
    torch.testing.assert_close(packed, expected, **EXACT)


def test_haar_is_orthonormal():
    x = image(2, 3, 6, 8)
    torch.testing.assert_close(haar_dwt2(x).square().sum(), x.square().sum())


# ---- Equality with PyWavelets and with the definition


@needs_pywt
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_every_mode_equals_pywavelets(wavelet: str, mode: str):
    for size in SIZES:
        if 1 in size and mode in ("reflect", "antireflect"):
            continue  # PyWavelets refuses one sample here
        x = image(2, *size)
        low, high = pywt.dwt2(x.numpy(), wavelet, mode=mode)
        found = dwt2(x, wavelet, mode=mode)
        for band, expected in zip(flat(found), (low, *high), strict=True):
            torch.testing.assert_close(band, torch.from_numpy(expected), **EXACT)
        back = pywt.idwt2((low, high), wavelet, mode=mode)
        torch.testing.assert_close(
            idwt2(found, wavelet, mode=mode), torch.from_numpy(back), **EXACT
        )


@needs_pywt
@pytest.mark.parametrize("mode", ["symmetric", "periodization"])
def test_pyramid_has_the_form_and_values_of_wavedec2(mode: str):
    x = image(2, 19, 26)
    found = dwt2(x, "db2", levels=2, mode=mode)
    expected = pywt.wavedec2(x.numpy(), "db2", level=2, mode=mode)
    assert [len(level) for level in found[1:]] == [3, 3]
    for band, truth in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(band, torch.from_numpy(truth), **EXACT)
    back = pywt.waverec2(expected, "db2", mode=mode)
    torch.testing.assert_close(idwt2(found, "db2", mode=mode), torch.from_numpy(back), **EXACT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", ["haar", pytest.param("db3", marks=needs_pywt)])
def test_transform_and_inverse_equal_the_reference_matrices(wavelet: str, mode: str):
    for size in ((6, 9), (1, 4), (3, 2)):  # reflections more than once for db3
        x = image(2, *size)
        found = dwt2(x, wavelet, mode=mode)
        expected = reference_dwt2(x, wavelet, mode=mode)
        for band, truth in zip(flat(found), flat(expected), strict=True):
            torch.testing.assert_close(band, truth, **EXACT)
        back = reference_idwt2(found[0], found[1], wavelet, mode=mode)
        torch.testing.assert_close(idwt2(found, wavelet, mode=mode), back, **EXACT)


# ---- The inverse


@needs_pywt
@pytest.mark.parametrize("family", pywt.families() if pywt else ["none"])
def test_every_discrete_wavelet_returns_the_image(family: str):
    for index, wavelet in enumerate(pywt.wavelist(family, kind="all") if pywt else []):
        if wavelet not in pywt.wavelist(kind="discrete"):
            continue
        mode = MODES[index % len(MODES)]
        size = ((7, 10), (1, 1), (2, 13))[index % 3]
        x = image(2, *size)
        back = idwt2(dwt2(x, wavelet, mode=mode), wavelet, mode=mode, size=size)
        # The tables' own accuracy: the discrete Meyer filter is a truncation, PyWavelets returns as
        # little; the others are published to about 1e-9.
        tolerance = 2e-2 if wavelet == "dmey" else 1e-7
        torch.testing.assert_close(back, x, rtol=tolerance, atol=tolerance, msg=wavelet)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize(
    ("wavelet", "mode"),
    [
        ("haar", "symmetric"),
        ("db1", "zero"),
        pytest.param("db2", "reflect", marks=needs_pywt),
        pytest.param("bior4.4", "periodization", marks=needs_pywt),
        pytest.param("rbio3.1", "antireflect", marks=needs_pywt),
        pytest.param("sym4", "smooth", marks=needs_pywt),
    ],
)
def test_pyramid_returns_any_size(wavelet: str, mode: str, levels: int, channels_last: bool):
    options = {"mode": mode, "channels_last": channels_last}
    for H, W in ((1, 1), (2, 3), (13, 8), (5, 17)):
        x = image(2, H, W, 3) if channels_last else image(2, 3, H, W)
        back = idwt2(dwt2(x, wavelet, levels=levels, **options), wavelet, size=(H, W), **options)
        assert back.shape == x.shape
        # Smooth and antireflect extrapolate: values far off the edge grow, and rounding with them.
        torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)


def test_without_size_an_odd_image_comes_back_even():
    x = image(1, 2, 5, 7)
    back = idwt2(dwt2(x))
    assert back.shape == (1, 2, 6, 8)
    torch.testing.assert_close(back[..., :5, :7], x, **EXACT)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_packed_haar_returns_the_image(size: tuple[int, int]):
    x = image(2, 3, *size)
    torch.testing.assert_close(haar_idwt2(haar_dwt2(x), size=size), x, **EXACT)
    last = x.permute(0, 2, 3, 1).contiguous()
    torch.testing.assert_close(haar_idwt2(haar_dwt2(last, True), True, size=size), last, **EXACT)


def test_packed_odd_sizes_repeat_the_edge_unless_told_otherwise():
    x = torch.tensor([[[[3.0]]]])
    assert haar_dwt2(x).flatten().tolist() == [6, 0, 0, 0]
    assert haar_dwt2(x, mode="zero").flatten().tolist() == [1.5, 1.5, 1.5, 1.5]


# ---- Shapes and memory layouts


def test_leading_dimensions_may_be_none_or_many():
    x = image(2, 3, 4, 6, 8)
    whole = flat(dwt2(x))
    for index in ((), (1,), (1, 2), (1, 2, 3)):
        for band, part in zip(whole, flat(dwt2(x[index])), strict=True):
            torch.testing.assert_close(part, band[index], **EXACT)
    torch.testing.assert_close(idwt2(dwt2(x[1, 2, 3])), x[1, 2, 3], **EXACT)


@pytest.mark.parametrize("wavelet", ["haar", pytest.param("db2", marks=needs_pywt)])
def test_layout_of_memory_does_not_change_the_result(wavelet: str):
    x = image(2, 6, 5, 8)
    expected = flat(dwt2(x, wavelet, levels=2))
    layouts = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.mT.contiguous().mT,
        "sliced": image(2, 6, 5, 16)[..., ::2].copy_(x),
        "channels sliced": image(2, 5, 8, 12).permute(0, 3, 1, 2)[:, ::2].copy_(x),
    }
    for name, view in layouts.items():
        bands = dwt2(view, wavelet, levels=2)
        for band, truth in zip(flat(bands), expected, strict=True):
            torch.testing.assert_close(band, truth, **EXACT, msg=name)
        torch.testing.assert_close(idwt2(bands, wavelet, size=(5, 8)), x, **EXACT, msg=name)
    last = dwt2(x.permute(0, 2, 3, 1), wavelet, levels=2, channels_last=True)
    for band, truth in zip(flat(last), expected, strict=True):
        torch.testing.assert_close(band.permute(0, 3, 1, 2), truth, **EXACT)


def test_packed_haar_keeps_the_order_of_memory():
    x = image(2, 3, 4, 6)
    y = haar_dwt2(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert haar_idwt2(y).is_contiguous(memory_format=torch.channels_last)
    assert haar_dwt2(x).is_contiguous()
    assert haar_dwt2(x.permute(0, 2, 3, 1).contiguous(), True).is_contiguous()
    torch.testing.assert_close(y, haar_dwt2(x), **EXACT)
    torch.testing.assert_close(
        haar_dwt2(x.permute(0, 2, 3, 1), True).permute(0, 3, 1, 2), haar_dwt2(x), **EXACT
    )


def test_input_is_left_as_it_was():
    x = image(2, 3, 5, 6, dtype=torch.float32)
    before = x.clone()
    idwt2(dwt2(x, levels=2), size=(5, 6))
    haar_idwt2(haar_dwt2(x[..., :4, :]))
    assert torch.equal(x, before)


# ---- Gradients


@forward_mode
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wavelet", ["haar", pytest.param("bior2.2", marks=needs_pywt)])
def test_first_and_second_derivatives_of_dwt2(wavelet: str, channels_last: bool):
    x = image(3, 5, 2).requires_grad_()

    def bands(x: Tensor) -> list[Tensor]:
        return flat(dwt2(x, wavelet, channels_last=channels_last))

    assert torch.autograd.gradcheck(bands, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(bands, x)


@forward_mode
@pytest.mark.parametrize("mode", ["symmetric", "periodization"])
@pytest.mark.parametrize("wavelet", ["haar", pytest.param("db2", marks=needs_pywt)])
def test_first_and_second_derivatives_of_idwt2(wavelet: str, mode: str):
    bands = [band.requires_grad_() for band in flat(dwt2(image(2, 3, 6), wavelet, mode=mode))]

    def back(ll: Tensor, *details: Tensor) -> Tensor:
        return idwt2((ll, tuple(details)), wavelet, mode=mode, size=(3, 6))

    assert torch.autograd.gradcheck(back, bands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(back, bands)


@forward_mode
@pytest.mark.parametrize("channels_last", [False, True])
def test_first_and_second_derivatives_of_packed_haar(channels_last: bool):
    x = image(2, 4, 2, 4).requires_grad_()
    for function in (haar_dwt2, haar_idwt2):
        assert torch.autograd.gradcheck(function, (x, channels_last), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, (x, channels_last))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wavelet", ["haar", pytest.param("db2", marks=needs_pywt)])
def test_vmap_equals_a_batch(wavelet: str, channels_last: bool):
    x = image(2, 3, 4, 5, 6)
    mapped = torch.func.vmap(lambda x: dwt2(x, wavelet, channels_last=channels_last), 1)(x)
    whole = dwt2(x.movedim(1, 0), wavelet, channels_last=channels_last)
    for band, truth in zip(flat(mapped), flat(whole), strict=True):
        torch.testing.assert_close(band, truth, **EXACT)


# ---- Dtypes


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wavelet", ["haar", pytest.param("db4", marks=needs_pywt)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_is_as_close_as_the_dtype_allows(
    dtype: torch.dtype, wavelet: str, channels_last: bool
):
    x = image(2, 6, 9, 4, dtype=dtype) if channels_last else image(2, 4, 6, 9, dtype=dtype)
    size = (6, 9)
    eps = torch.finfo(dtype).eps
    bands = dwt2(x, wavelet, levels=2, channels_last=channels_last)
    truth = dwt2(x.double(), wavelet, levels=2, channels_last=channels_last)
    for band, exact in zip(flat(bands), flat(truth), strict=True):
        assert band.dtype == dtype
        # Low precision: one rounding (eps / 2 relative). Others: about twenty sums of values < 10.
        atol = 1e-6 if dtype in (torch.float16, torch.bfloat16) else 20 * eps
        torch.testing.assert_close(band.double(), exact, rtol=eps, atol=atol)
    back = idwt2(bands, wavelet, size=size, channels_last=channels_last)
    assert back.dtype == dtype
    # Each of the bands is off by eps / 2 of its size, at most about 8 here.
    torch.testing.assert_close(back, x, rtol=0, atol=20 * eps)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_packed_haar_rounds_low_precision_once(dtype: torch.dtype, channels_last: bool):
    x = image(2, 4, 6, 8, dtype=dtype)
    y = haar_dwt2(x, channels_last)
    assert torch.equal(y, haar_dwt2(x.float(), channels_last).to(dtype))
    back = haar_idwt2(y, channels_last)
    assert torch.equal(back, haar_idwt2(y.float(), channels_last).to(dtype))


def test_float16_sums_do_not_overflow_before_they_are_halved():
    x = torch.full((1, 1, 2, 2), 3e4, dtype=torch.float16)
    assert haar_dwt2(x)[0, 0].item() == pytest.approx(6e4, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wavelet", ["haar", pytest.param("db2", marks=needs_pywt)])
def test_autocast_changes_nothing(wavelet: str, dtype: torch.dtype):
    x = image(1, 2, 6, 7, dtype=dtype)
    expected = dwt2(x, wavelet)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dwt2(x, wavelet)
        back = idwt2(found, wavelet, size=(6, 7))
    assert back.dtype == dtype
    for band, truth in zip(flat(found), flat(expected), strict=True):
        assert torch.equal(band, truth)


# ---- PyWavelets stays optional


def test_haar_does_not_import_pywavelets():
    code = (
        "import sys, torch; sys.modules['pywt'] = None\n"
        "from wavevit.ops import dwt2, idwt2\n"
        "x = torch.rand(1, 1, 5, 5)\n"
        "for name in ('haar', 'db1'):\n"
        "    torch.testing.assert_close(idwt2(dwt2(x, name), name, size=(5, 5)), x)\n"
        "try:\n    dwt2(x, 'db2')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert 'pip install "wavevit[wavelets]"' in done.stdout


@needs_pywt
def test_built_in_haar_filters_equal_pywavelets():
    for ours, theirs in zip(filter_bank("haar"), pywt.Wavelet("haar").filter_bank, strict=True):
        assert ours == pytest.approx(tuple(theirs), abs=1e-15)


# ---- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wavelet", ["haar", pytest.param("db4", marks=needs_pywt)])
def test_gpu_equals_cpu(wavelet: str, dtype: torch.dtype, channels_last: bool):
    x = image(2, 8, 9, 12, dtype=dtype).requires_grad_()
    y = x.detach().cuda().requires_grad_()
    options = {"levels": 2, "channels_last": channels_last}
    ours, theirs = flat(dwt2(x, wavelet, **options)), flat(dwt2(y, wavelet, **options))
    # Sums in another order, then one rounding; no TF32, whose steps are 1e-3.
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-5}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(b.cpu(), a, **tolerance)
    sum(band.float().square().sum() for band in ours).backward()
    sum(band.float().square().sum() for band in theirs).backward()
    torch.testing.assert_close(y.grad.cpu(), x.grad, rtol=4 * torch.finfo(dtype).eps, atol=1e-4)

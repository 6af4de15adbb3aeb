"""DWT2d and IDWT2d: packing, inverse, and state dicts of the original Wave-ViT code."""

import copy
import importlib.util
import pickle

import pytest
import torch
from torch import Tensor, nn

from wavevit.layers import DWT2d, IDWT2d
from wavevit.ops import dwt2

needs_pywt = pytest.mark.skipif(
    importlib.util.find_spec("pywt") is None, reason="PyWavelets is not installed"
)
WAVELETS = ["haar", pytest.param("db2", marks=needs_pywt)]


def old_state() -> dict[str, Tensor]:
    """The official buffers: float16, half plus and minus ones."""
    signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
    filters = 0.5 * torch.tensor(signs, dtype=torch.float16).view(4, 1, 2, 2)
    names = ("dwt.w_ll", "dwt.w_lh", "dwt.w_hl", "dwt.w_hh")
    return {**dict(zip(names, filters.split(1), strict=True)), "idwt.filters": filters}


@pytest.mark.parametrize("mode", ["symmetric", "periodization", "zero"])
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_bands_are_packed_in_order(wavelet: str, mode: str):
    x = torch.randn(2, 3, 7, 10)
    ll, details = dwt2(x, wavelet, mode=mode)
    expected = torch.cat((ll, *details), 1)
    torch.testing.assert_close(DWT2d(wavelet, mode=mode)(x), expected)
    last = DWT2d(wavelet, mode=mode, channels_last=True)(x.permute(0, 2, 3, 1))
    torch.testing.assert_close(last.permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["symmetric", "periodization", "zero"])
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_inverse_returns_the_image(wavelet: str, mode: str, channels_last: bool):
    dwt = DWT2d(wavelet, mode=mode, channels_last=channels_last)
    idwt = IDWT2d(wavelet, mode=mode, channels_last=channels_last)
    x = torch.randn(2, 7, 10, 3) if channels_last else torch.randn(2, 3, 7, 10)
    # fp32: a dozen products of order 1.
    torch.testing.assert_close(idwt(dwt(x), size=(7, 10)), x, rtol=0, atol=1e-5)
    even = torch.randn(2, 4, 6, 3) if channels_last else torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(idwt(dwt(even)), even, rtol=0, atol=1e-5)


def test_layers_hold_nothing_and_can_be_copied_and_pickled():
    for layer in (DWT2d(), IDWT2d()):
        assert not layer.state_dict()
        assert not list(layer.parameters())
        x = torch.randn(1, 4, 2, 2)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(twin(x), layer(x))
    assert repr(DWT2d("haar", mode="zero")) == "DWT2d('haar', mode='zero', channels_last=False)"


def test_official_buffers_load_strictly_and_vanish():
    network = nn.ModuleDict({"dwt": DWT2d(), "idwt": IDWT2d()})
    state = old_state()
    network.load_state_dict(state, strict=True)
    assert not network.state_dict()
    assert len(state) == 5, "the caller's dict stays whole"
    DWT2d().load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("dwt")})
    network.load_state_dict({}, strict=True)


def test_other_unknown_names_are_still_refused():
    network = nn.ModuleDict({"dwt": DWT2d()})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*dwt.w_xx"):
        network.load_state_dict({"dwt.w_xx": torch.zeros(1)})


def test_filters_that_are_not_haar_are_refused():
    network = nn.ModuleDict({"dwt": DWT2d(), "idwt": IDWT2d()})
    state = old_state()
    state["dwt.w_lh"], state["dwt.w_hl"] = state["dwt.w_hl"], state["dwt.w_lh"]
    with pytest.raises(RuntimeError, match=r"dwt.w_lh: expected the Haar filters"):
        network.load_state_dict(state)
    state = old_state() | {"idwt.filters": torch.zeros(4, 1, 4, 4)}
    with pytest.raises(RuntimeError, match=r"idwt.filters: expected the Haar filters"):
        network.load_state_dict(state)


@needs_pywt
def test_official_buffers_do_not_fit_another_wavelet():
    network = nn.ModuleDict({"dwt": DWT2d("db2"), "idwt": IDWT2d("db2")})
    with pytest.raises(RuntimeError, match="expected the Haar filters of a layer with wavelet"):
        network.load_state_dict(old_state())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: DWT2d(mode="mirror"), "unknown mode 'mirror'"),
        (lambda: DWT2d()(torch.zeros(2, 4, 4)), "four dimensions"),
        (lambda: IDWT2d()(torch.zeros(1, 6, 4, 4)), "multiple of 4 channels.*got 6"),
        (lambda: IDWT2d()(torch.zeros(1, 4, 2, 2), size=(2, 2)), r"cannot make size \(2, 2\)"),
        pytest.param(lambda: DWT2d("dbx"), "unknown discrete wavelet 'dbx'", marks=needs_pywt),
        pytest.param(
            lambda: DWT2d("db2")(torch.zeros(2, 4, 4)), "four dimensions", marks=needs_pywt
        ),
        pytest.param(
            lambda: IDWT2d("db2")(torch.zeros(1, 6, 4, 4)), "multiple of 4 ch", marks=needs_pywt
        ),
    ],
)
def test_mistakes_are_named(call, text: str):
    with pytest.raises(ValueError, match=text):
        call()

"""Every mistake a user can make with the wavelet transforms is named in one line."""

import importlib.util

import pytest
import torch

from wavevit.ops import dwt2, haar_dwt2, haar_idwt2, idwt2

needs_pywt = pytest.mark.skipif(
    importlib.util.find_spec("pywt") is None, reason="PyWavelets is not installed"
)
X = torch.zeros(1, 2, 4, 6)
BANDS = dwt2(X)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        pytest.param(
            lambda: dwt2(X, "bior2.3"),
            ValueError,
            "unknown discrete wavelet 'bior2.3'.*bior2",
            marks=needs_pywt,
        ),
        pytest.param(
            lambda: dwt2(X, "harr"),
            ValueError,
            "unknown discrete wavelet 'harr'.*haar",
            marks=needs_pywt,
        ),
        (lambda: dwt2(X, 3), TypeError, "wavelet must be a name.*got int"),
        (lambda: dwt2(X, mode="symetric"), ValueError, "unknown mode 'symetric'.*symmetric"),
        (lambda: dwt2(X[0, 0, 0]), ValueError, r"at least 2 dimensions .*got shape \(6,\)"),
        (lambda: dwt2(X[0, 0], channels_last=True), ValueError, "at least 3 dimensions"),
        (lambda: dwt2(X, levels=0), ValueError, "levels of at least 1, got 0"),
        (lambda: dwt2(X[:, :, :0]), ValueError, "got 0 rows and 6 columns"),
        (lambda: dwt2(X.int()), TypeError, "got torch.int32; convert it first"),
        (lambda: dwt2(X.to(torch.complex64)), TypeError, "real numbers.*x.real and x.imag"),
        (lambda: dwt2(X.numpy()), TypeError, "needs a torch.Tensor, got ndarray"),
        (lambda: haar_dwt2(X[0]), ValueError, r"four dimensions.*got shape \(2, 4, 6\)"),
        (lambda: haar_dwt2(X[..., :0]), ValueError, "got 4 rows and 0 columns"),
        (lambda: haar_dwt2(X, mode="odd"), ValueError, "unknown mode 'odd'"),
        (lambda: haar_idwt2(X), ValueError, "multiple of 4 channels.*got 2"),
        (lambda: haar_idwt2(X[0]), ValueError, "four dimensions"),
        (lambda: haar_idwt2(X.long()), TypeError, "got torch.int64"),
        (lambda: idwt2(BANDS, size=(4, 7)), ValueError, r"cannot make size \(4, 7\).*6 or 5 col"),
        (lambda: idwt2(BANDS, size=(4,)), ValueError, r"size as \(H, W\)"),
        (lambda: idwt2(X), TypeError, "nested .*got Tensor"),
        (lambda: idwt2((X, (X, X))), TypeError, "three detail bands"),
        (lambda: idwt2((X, (X, X, X[..., :3]))), ValueError, "of one level of one shape"),
        (lambda: idwt2((X[..., :5], (X, X, X))), ValueError, "at level 1 of 1; check levels"),
        (lambda: idwt2((X, (X[:, :, :3],) * 3)), ValueError, "ll and details of one shape"),
        (lambda: idwt2((X, (X, X, X.double()))), ValueError, "one dtype, got torch.float32 and"),
        (lambda: idwt2((X, (X, X, X.int()))), TypeError, "got torch.int32"),
        pytest.param(
            lambda: idwt2(BANDS, "db4"),
            ValueError,
            "bands of at least 4 rows and 4 columns",
            marks=needs_pywt,
        ),
    ],
)
def test_mistakes_are_named(call, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        call()

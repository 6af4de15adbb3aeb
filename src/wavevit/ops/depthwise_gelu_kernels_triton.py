"""The Triton kernels of `depthwise_gelu_triton`.

Letters: B batch, H W rows and columns, C channels, K columns of a strip, P strips of a tile,
N partial sums.

The map is cut into strips, K columns wide. A thread owns a few channels of a strip and walks down
its rows: each row is loaded and converted once and added into three output rows, whose sums stay in
registers. That leaves 23 instructions for each output, and memory as the limit.
"""

# ruff: noqa: RUF005 - Triton's tuples know no unpacking
# The kernels' language has types of its own:
# mypy: ignore-errors

import triton
import triton.language as tl

# Tiles are (P, channels); tuples hold one tile for each column or tap.
# Fused multiply-adds are spelled out: Triton 3.10 no longer makes them of products and sums.


# A kernel for every combination of sizes that are multiples of 16, or 1, would be compiled anew a
# hundred times while maps change from batch to batch; none of them makes the kernels faster, since
# the alignment of what is read and written follows from C.
SIZES = ["H", "W", "num_strips", "strips_per_row", "row_blocks", "rows"]


@triton.jit
def _tail_exponent(z, SHORT: tl.constexpr):
    """log2 of the normal distribution's tail beyond z >= 0, so that the tail is one exp2 away.

    Minimax polynomials on [0, 7] (16 bit) and [0, 7.5] (32 bit), fitted to the relative error of
    z * tail where that exceeds 3e-3 and to its absolute error below. They fall towards minus
    infinity beyond. GELU is off by 4e-5 of itself in 16 bit, whose own rounding is 2.4e-4 at least,
    and by 1.5e-7 in 32 bit. erf from CUDA's library takes twice as many instructions.
    """
    if SHORT:
        p = tl.fma(z, -0.000400663877, 0.006549187)
        p = tl.fma(p, z, -0.0504779182)
        p = tl.fma(p, z, -0.461340994)
        p = tl.fma(p, z, -1.15034139)
        p = tl.fma(p, z, -1.00005329)
    else:
        p = tl.fma(z, -9.92003834e-07, 1.55451326e-05)
        p = tl.fma(p, z, -6.25802495e-05)
        p = tl.fma(p, z, -0.000466911559)
        p = tl.fma(p, z, 0.00754683977)
        p = tl.fma(p, z, -0.0528783761)
        p = tl.fma(p, z, -0.459059656)
        p = tl.fma(p, z, -1.15112782)
        p = tl.fma(p, z, -0.999999344)
    return p


@triton.jit
def _normal_cdf(x, SHORT: tl.constexpr):
    """The normal distribution function of x, as precise as 16 bits (SHORT) or 32 need."""
    if x.dtype == tl.float64:
        return 0.5 + 0.5 * tl.math.erf(x * 0.7071067811865476)
    tail = tl.exp2(_tail_exponent(tl.abs(x), SHORT))
    return tl.where(x >= 0, 1 - tail, tail)


@triton.jit
def _gelu_derivative(x, SHORT: tl.constexpr):
    # exp(-x^2 / 2) / sqrt(2 pi)
    if x.dtype == tl.float64:
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
    return tl.fma(x, density, _normal_cdf(x, SHORT))


@triton.jit
def _locate(H, row_blocks, rows, C: tl.constexpr, P: tl.constexpr, CHANNELS: tl.constexpr):
    """What a program works on: channels, the first row and the end, strips; and its number."""
    channel_blocks: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)  # channels run fastest, as in memory
    c = (program % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    program = program // channel_blocks
    first = (program % row_blocks) * rows
    strip = (program // row_blocks) * P + tl.arange(0, P)[:, None]
    return c, first, tl.minimum(first + rows, H), strip, program


@triton.jit
def _load_parameters(
    weight_ptr,
    bias_ptr,
    c,
    keep,
    K: tl.constexpr,
    P: tl.constexpr,
    CHANNELS: tl.constexpr,
    dtype: tl.constexpr,
    BIAS: tl.constexpr,
    FLIP: tl.constexpr,
):
    """Nine taps, row by row, with FLIP turned by half a turn; and K sums that hold the bias."""
    taps = ()
    for tap in tl.static_range(9):
        w = tl.load(weight_ptr + c * 9 + (8 - tap if FLIP else tap), mask=keep, other=0.0)
        taps = taps + (w.to(dtype),)
    start = tl.full((P, CHANNELS), 0.0, dtype)
    if BIAS:
        start = start + tl.load(bias_ptr + c, mask=keep, other=0.0).to(dtype)
    return taps, _repeat(start, K)


@triton.jit
def _repeat(tile, COUNT: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def _load_columns(
    row, column, keep, W, C: tl.constexpr, K: tl.constexpr, HALO: tl.constexpr, MASKED: tl.constexpr
):
    """A row of each strip, K columns from `column` on and HALO on either side; zeros outside.

    row: pointers to (row, column); keep: which channels and strips there are.
    """
    columns = ()
    for k in tl.static_range(-HALO, K + HALO):
        pointers = row + k * C
        if MASKED:
            inside = keep & (column + k >= 0) & (column + k < W)
            columns = columns + (tl.load(pointers, mask=inside, other=0.0),)
        elif k < 0:
            columns = columns + (tl.load(pointers, mask=column + k >= 0, other=0.0),)
        elif k >= K:
            columns = columns + (tl.load(pointers, mask=column + k < W, other=0.0),)
        else:
            columns = columns + (tl.load(pointers),)
    return columns


@triton.jit
def _load_row(
    row,
    column,
    keep,
    W,
    inside,
    C: tl.constexpr,
    K: tl.constexpr,
    dtype: tl.constexpr,
    MASKED: tl.constexpr,
):
    """K + 2 columns of a row of the map, as `dtype`; zeros where the row is not inside."""
    loaded = _load_columns(row, column, keep, W, C, K, 1, MASKED)
    columns = ()
    for k in tl.static_range(K + 2):
        columns = columns + (tl.where(inside, loaded[k], 0.0).to(dtype),)
    return columns


@triton.jit
def _store_columns(
    row, column, keep, tiles, W, C: tl.constexpr, K: tl.constexpr, MASKED: tl.constexpr
):
    for k in tl.static_range(K):
        value = tiles[k].to(row.dtype.element_ty)
        if MASKED:
            tl.store(row + k * C, value, mask=keep & (column + k < W))
        else:
            tl.store(row + k * C, value)


@triton.jit
def _add_row(sums, x, taps, ROW: tl.constexpr, K: tl.constexpr):
    """sums plus the filters' row ROW over the columns x."""
    results = ()
    for k in tl.static_range(K):
        total = tl.fma(x[k], taps[3 * ROW], sums[k])
        total = tl.fma(x[k + 1], taps[3 * ROW + 1], total)
        results = results + (tl.fma(x[k + 2], taps[3 * ROW + 2], total),)
    return results


@triton.jit
def _activate(sums, K: tl.constexpr, GELU: tl.constexpr, SHORT: tl.constexpr):
    if not GELU:
        return sums
    results = ()
    for k in tl.static_range(K):
        results = results + (sums[k] * _normal_cdf(sums[k], SHORT),)
    return results


@triton.jit
def _differentiate(sums, g, K: tl.constexpr, SHORT: tl.constexpr):
    """The gradient of the pre-activation: GELU's derivative times the incoming gradient."""
    results = ()
    for k in tl.static_range(K):
        results = results + (g[k].to(sums[k].dtype) * _gelu_derivative(sums[k], SHORT),)
    return results


@triton.jit
def _add_products(totals, x, d, K: tl.constexpr):
    """totals, nine taps and the bias, with their gradients from one row added.

    x: the three input rows around it; d: the gradient of its pre-activation.
    """
    results = ()
    for tap in tl.static_range(9):
        total = totals[tap]
        for k in tl.static_range(K):
            total = tl.fma(x[tap // 3][k + tap % 3], d[k], total)
        results = results + (total,)
    total = totals[9]
    for k in tl.static_range(K):
        total = total + d[k]
    return results + (total,)


@triton.jit(do_not_specialize=SIZES)
def depthwise_kernel(
    x_ptr,  # (B, H, W, C)
    weight_ptr,  # (C, 3, 3)
    bias_ptr,  # (C,), not read without BIAS
    y_ptr,  # (B, H, W, C)
    H,
    W,
    num_strips,  # B * strips_per_row
    strips_per_row,  # ceil(W / K)
    row_blocks,  # ceil(H / rows)
    rows,  # output rows of a program
    C: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    CHANNELS: tl.constexpr,
    SHORT: tl.constexpr,  # the tensors have 16 bits
    MASKED: tl.constexpr,  # W % K or C % CHANNELS is not zero
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    FLIP: tl.constexpr,
):
    """y = gelu(conv(x) + bias); with FLIP and without the rest, conv's transpose."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    c, first, end, strip, _ = _locate(H, row_blocks, rows, C, P, CHANNELS)
    taps, start = _load_parameters(
        weight_ptr, bias_ptr, c, c < C, K, P, CHANNELS, dtype, BIAS, FLIP
    )
    # The last tile repeats the last strip: it writes the same values twice.
    strip = tl.minimum(strip, num_strips - 1)
    keep = c < C
    column = (strip % strips_per_row) * K
    offset = (((strip // strips_per_row).to(tl.int64) * H + first) * W + column) * C + c
    x_row = x_ptr + offset
    y_row = y_ptr + offset
    # Rows outside the map: loaded from the nearest one inside, and replaced by zeros.
    above_row = x_row - tl.where(first > 0, W * C, 0)
    x = _load_row(above_row, column, keep, W, first > 0, C, K, dtype, MASKED)
    here = _add_row(start, x, taps, 0, K)
    x = _load_row(x_row, column, keep, W, True, C, K, dtype, MASKED)
    above = _add_row(here, x, taps, 1, K)
    here = _add_row(start, x, taps, 0, K)
    for _ in range(first + 1, end):
        # above, here: what is summed up for the row before and for this one.
        x_row += W * C
        x = _load_row(x_row, column, keep, W, True, C, K, dtype, MASKED)
        done = _add_row(above, x, taps, 2, K)
        above = _add_row(here, x, taps, 1, K)
        here = _add_row(start, x, taps, 0, K)
        _store_columns(y_row, column, keep, _activate(done, K, GELU, SHORT), W, C, K, MASKED)
        y_row += W * C
    x_row += tl.where(end < H, W * C, 0)
    x = _load_row(x_row, column, keep, W, end < H, C, K, dtype, MASKED)
    done = _add_row(above, x, taps, 2, K)
    _store_columns(y_row, column, keep, _activate(done, K, GELU, SHORT), W, C, K, MASKED)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    x_ptr,  # (B, H, W, C)
    weight_ptr,  # (C, 3, 3)
    bias_ptr,  # (C,), not read without BIAS
    g_ptr,  # (B, H, W, C), the gradient of the result
    d_ptr,  # (B, H, W, C), the gradient of the pre-activation
    partial_ptr,  # (N, 10, C), of nine taps and the bias; not written without SUMS
    H,
    W,
    num_strips,
    strips_per_row,
    row_blocks,
    rows,
    C: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    CHANNELS: tl.constexpr,
    SHORT: tl.constexpr,
    MASKED: tl.constexpr,  # also where the last tile has strips to spare
    BIAS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """d = g * gelu'(conv(x) + bias), and each program's share of the parameters' gradients."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    c, first, end, strip, share = _locate(H, row_blocks, rows, C, P, CHANNELS)
    taps, start = _load_parameters(
        weight_ptr, bias_ptr, c, c < C, K, P, CHANNELS, dtype, BIAS, False
    )
    keep = (c < C) & (strip < num_strips)
    strip = tl.minimum(strip, num_strips - 1)
    column = (strip % strips_per_row) * K
    offset = (((strip // strips_per_row).to(tl.int64) * H + first) * W + column) * C + c
    x_row = x_ptr + offset
    g_row = g_ptr + offset
    d_row = d_ptr + offset
    totals = _repeat(tl.full((P, CHANNELS), 0.0, dtype), 10)
    above_row = x_row - tl.where(first > 0, W * C, 0)
    x0 = _load_row(above_row, column, keep, W, first > 0, C, K, dtype, MASKED)
    here = _add_row(start, x0, taps, 0, K)
    x1 = _load_row(x_row, column, keep, W, True, C, K, dtype, MASKED)
    above = _add_row(here, x1, taps, 1, K)
    here = _add_row(start, x1, taps, 0, K)
    for _ in range(first + 1, end):
        # As above, but the three input rows of an output row stay, for the filters' gradients.
        x_row += W * C
        g = _load_columns(g_row, column, keep, W, C, K, 0, MASKED)
        x2 = _load_row(x_row, column, keep, W, True, C, K, dtype, MASKED)
        d = _differentiate(_add_row(above, x2, taps, 2, K), g, K, SHORT)
        above = _add_row(here, x2, taps, 1, K)
        here = _add_row(start, x2, taps, 0, K)
        _store_columns(d_row, column, keep, d, W, C, K, MASKED)
        if SUMS:
            totals = _add_products(totals, (x0, x1, x2), d, K)
        x0 = x1
        x1 = x2
        g_row += W * C
        d_row += W * C
    x_row += tl.where(end < H, W * C, 0)
    g = _load_columns(g_row, column, keep, W, C, K, 0, MASKED)
    x2 = _load_row(x_row, column, keep, W, end < H, C, K, dtype, MASKED)
    d = _differentiate(_add_row(above, x2, taps, 2, K), g, K, SHORT)
    _store_columns(d_row, column, keep, d, W, C, K, MASKED)
    if SUMS:
        totals = _add_products(totals, (x0, x1, x2), d, K)
        for tap in tl.static_range(10):
            target = partial_ptr + (share.to(tl.int64) * 10 + tap) * C + c
            tl.store(target, tl.sum(totals[tap], axis=0)[None, :], mask=c < C)

# mypy: disable-error-code="assignment"
# Triton compiles these functions: in them, tuples grow, and ranges are unrolled.
"""What the Triton kernels of the selective scan share: places in memory, and tiles of states.

Symbols: d channels of a block, t time, n states. Sequences are channels-last, [batch, time, channels] with strides.
States are float32: [S, D] in memory, in registers a tuple of PARTS tiles of WIDTH states each, S = PARTS WIDTH. So 24
states are 3 x 8, where one tile of 32 would leave a quarter idle. If S exceeds N, A, B and C are padded with zeros, and
the further states stay zero. So no mask is needed along n.
"""

import triton
import triton.language as tl


@triton.jit
def place(channels, chunks, BLOCK: tl.constexpr):
    """This program's batch entry, chunk and channels. Neighbouring programs read the same B_t and C_t."""
    program, blocks = tl.program_id(0), tl.cdiv(channels, BLOCK)
    block = program % blocks
    return (
        (program // (blocks * chunks)).to(tl.int64),
        program // blocks % chunks,
        block,
        block * BLOCK + tl.arange(0, BLOCK),
    )


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(e), e = exp(-|x|), to full float32 precision: log1p(e) = 2 artanh(e / (2 + e))."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    s2 = s * s
    series = 1 / 7 + s2 * (1 / 9 + s2 * (1 / 11 + s2 * (1 / 13 + s2 * (1 / 15))))
    return tl.maximum(x, 0.0) + 2.0 * s * (1.0 + s2 * (1 / 3 + s2 * (1 / 5 + s2 * series)))


@triton.jit
def load(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_step(ptr, bias, inside, SOFTPLUS: tl.constexpr):
    """The step size; 0 outside, so that such a step changes nothing."""
    step = load(ptr, inside) + bias
    return tl.where(inside, softplus(step) if SOFTPLUS else step, 0.0)


@triton.jit
def load_row(ptr, number, j: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """Row `number` of B or C, float32 [rows, S], for the states of tile j."""
    return tl.load(ptr + number * (PARTS * WIDTH) + j * WIDTH + tl.arange(0, WIDTH))


@triton.jit
def tile(index, j: tl.constexpr, d, channels, WIDTH: tl.constexpr, PARTS: tl.constexpr, D_FIRST: tl.constexpr):
    """Offsets of tile j of the states number `index`, as [n, d], or as [d, n] if D_FIRST, and which channels exist.

    Everything is multiplied out from the index: a part that all tiles share would be kept in registers.
    """
    n = index * (PARTS * WIDTH) + j * WIDTH + tl.arange(0, WIDTH)
    if D_FIRST:
        n, d = n[None, :], d[:, None]
    else:
        n, d = n[:, None], d[None, :]
    return n * channels + d, d < channels


@triton.jit
def zero_states(d, WIDTH: tl.constexpr, PARTS: tl.constexpr, D_FIRST: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(PARTS):
        if D_FIRST:
            tiles = tiles + (tl.zeros([d.shape[0], WIDTH], dtype=tl.float32),)
        else:
            tiles = tiles + (tl.zeros([WIDTH, d.shape[0]], dtype=tl.float32),)
    return tiles


@triton.jit
def load_states(ptr, index, d, channels, WIDTH: tl.constexpr, PARTS: tl.constexpr, D_FIRST: tl.constexpr):
    """States number `index` [S, D] -> tiles; zeros where `ptr` is None."""
    if ptr is None:
        tiles = zero_states(d, WIDTH, PARTS, D_FIRST)
    else:
        tiles = ()
        for j in tl.static_range(PARTS):
            offset, mask = tile(index, j, d, channels, WIDTH, PARTS, D_FIRST)
            tiles = tiles + (tl.load(ptr + offset, mask=mask, other=0.0),)
    return tiles


@triton.jit
def store_states(ptr, index, tiles, d, channels, WIDTH: tl.constexpr, D_FIRST: tl.constexpr):
    for j in tl.static_range(len(tiles)):
        offset, mask = tile(index, j, d, channels, WIDTH, len(tiles), D_FIRST)
        tl.store(ptr + offset, tiles[j], mask=mask)

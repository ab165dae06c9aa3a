"""What the Triton kernels of the selective scan share: places in memory, and tiles of states.

Symbols: d channels of a block, t time, n states. Sequences are channels-last, [batch, time, channels] with strides.
States in memory are float32 [N, D], in registers a tuple of PARTS tiles of WIDTH states each: 24 states are 3 x 8,
without the idle quarter of one tile of 32.
"""
import triton
import triton.language as tl


@triton.jit
def place(channels, chunks, BLOCK: tl.constexpr):
    """This program's batch entry, chunk and channels. Neighbouring programs read the same B_t and C_t."""
    program, blocks = tl.program_id(0), tl.cdiv(channels, BLOCK)
    block = program % blocks
    return (program // (blocks * chunks)).to(tl.int64), program // blocks % chunks, block, \
        block * BLOCK + tl.arange(0, BLOCK)


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
    """The step size; 0 outside, where a step then changes nothing."""
    step = load(ptr, inside) + bias
    return tl.where(inside, softplus(step) if SOFTPLUS else step, 0.0)


@triton.jit
def load_row(ptr, j: tl.constexpr, states, inside, WIDTH: tl.constexpr):
    """B_t or C_t of the states of tile j."""
    n = j * WIDTH + tl.arange(0, WIDTH)
    return load(ptr + n, (n < states) & inside)


@triton.jit
def tile(j: tl.constexpr, d, channels, states, WIDTH: tl.constexpr, D_FIRST: tl.constexpr):
    """Offsets into [N, D], and which of them are there, of tile j as [n, d], or as [d, n] if D_FIRST."""
    n = j * WIDTH + tl.arange(0, WIDTH)
    if D_FIRST:
        n, d = n[None, :], d[:, None]
    else:
        n, d = n[:, None], d[None, :]
    return n * channels + d, (n < states) & (d < channels)


@triton.jit
def load_states(ptr, index, d, channels, states, WIDTH: tl.constexpr, PARTS: tl.constexpr, D_FIRST: tl.constexpr):
    """States number `index` [N, D] -> tiles; zeros where `ptr` is None."""
    tiles = ()
    for j in tl.static_range(PARTS):
        offset, mask = tile(j, d, channels, states, WIDTH, D_FIRST)
        if ptr is None:
            tiles = tiles + (tl.zeros(offset.shape, dtype=tl.float32),)
        else:
            tiles = tiles + (tl.load(ptr + index * states * channels + offset, mask=mask, other=0.0),)
    return tiles


@triton.jit
def store_states(ptr, index, tiles, d, channels, states, WIDTH: tl.constexpr, D_FIRST: tl.constexpr):
    for j in tl.static_range(len(tiles)):
        offset, mask = tile(j, d, channels, states, WIDTH, D_FIRST)
        tl.store(ptr + index * states * channels + offset, tiles[j], mask=mask)


@triton.jit
def pick(tile, i: tl.constexpr):
    """Row i of [GROUP, BLOCK]."""
    row = tl.arange(0, tile.shape[0])[:, None]
    return tl.sum(tl.where(row == i, tile, 0.0), axis=0)


@triton.jit
def put(tile, i: tl.constexpr, values):
    """The tile with row i, so far 0, set."""
    row = tl.arange(0, tile.shape[0])[:, None]
    return tl.where(row == i, values[None, :], tile)

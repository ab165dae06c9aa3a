/* The selective scan and its gradient on channels-last tensors; ../../selective_scan has the equation.
 *
 * Symbols: L time, D channels, N state, W lanes of a vector. A vector holds W neighbouring channels, so B_t and C_t
 * are scalars to broadcast, and no step in time shuffles lanes. Time is divided into chunks of CHUNK steps, whose
 * working arrays stay in the first-level cache, and the state into groups of GROUP, which stay in registers. Sums are
 * formed per chunk or group and then added up, which halves their rounding error. Inputs and outputs are float32, bfloat16 or
 * float16 each; states and sums are float32.
 *
 * A task is a block of channels of one batch entry. Sums over blocks and batch are returned as partial sums, so the
 * results do not depend on the number of threads, bit for bit. */
#include <stdlib.h>

#include "tensor.h"

/* In backward each block of channels gives one partial sum of dB and dC, so its width is fixed. */
enum { CHUNK = 16, GROUP = 4, BACKWARD_BLOCK = 192, MAX_VECS = BACKWARD_BLOCK / W };

/* Sizes and inputs. u, delta, z [batch, L, D] have last stride 1; B, C are [batch, L, N]; A [D, N] and D, delta_bias
 * [D] are contiguous float32. `starts` [batch, chunks, N D] are the float32 states before each chunk, kept for
 * backward: those of W channels side by side, [N, W]. With `add`, y and the gradient of z are added to what is there. */
typedef struct {
    int64_t batch, length, channels, state, threads, softplus, add;
    View u, delta, z, B, C;
    float *A, *D, *delta_bias, *starts;
} Problem;

static int64_t padded_state(const Problem *p) { return ceil_div(p->state, GROUP) * GROUP; }
static int lanes_at(const Problem *p, int64_t channel) { return smaller(W, p->channels - channel); }

/* Of W channels; their states are lanes_at(channel) apart. */
static float *start_at(const Problem *p, int64_t batch, int64_t chunk, int64_t channel) {
    return p->starts + ((batch * ceil_div(p->length, CHUNK) + chunk) * p->channels + channel) * p->state;
}

/* W channels at one step of time. */
typedef struct {
    vec dt, input;           /* softplus(delta + delta_bias), dt u */
    vec y;                   /* C h + D u, before the gate */
    vec dy;                  /* backward: the gradient of y */
    vec d_input, d_exponent; /* sums over N: the gradient of input; of dt / ln(2) through the decay */
    vec u, dt_slope;         /* the slope of dt in delta */
    vec gate_slope;          /* the gradient of z, without the factor y */
} Step;

/* W channels over a chunk of time. */
typedef struct {
    Step steps[CHUNK];
    int in_range; /* no decay leaves the range of exp2_product */
} Tile;

/* GROUP states of a tile before a step, and their decays in it. */
typedef struct {
    vec h[GROUP], decay[GROUP];
} History;

/* What a thread needs for a block of channels. */
typedef struct {
    vec *A;       /* log2(e) A, [vecs][padded N]: decays are powers of two */
    vec *carry;   /* the state, or in backward its adjoint, likewise */
    vec *dA;
    float *B, *C; /* of the current chunk, [CHUNK][padded N] */
    vec *dB, *dC; /* likewise, GROUP states to a vector as sum_quads gives them: [CHUNK][padded N / GROUP] */
    vec reach[MAX_VECS]; /* largest |log2(e) A| of each channel */
    Tile tile;
} Block;

static Block *block_new(const Problem *p) {
    size_t states = sizeof(vec) * MAX_VECS * padded_state(p), matrix = sizeof(float) * CHUNK * padded_state(p);
    size_t sums = sizeof(vec) * CHUNK * padded_state(p) / GROUP;
    size_t size = sizeof(Block) + 3 * states + 2 * sums + 2 * matrix;
    Block *block = aligned_alloc(sizeof(vec), ceil_div(size, sizeof(vec)) * sizeof(vec));
    if (block) {
        char *rest = (char *)(block + 1);
        block->A = (vec *)rest;
        block->carry = (vec *)(rest + states);
        block->dA = (vec *)(rest + 2 * states);
        block->dB = (vec *)(rest + 3 * states);
        block->dC = (vec *)(rest + 3 * states + sums);
        block->B = (float *)(rest + 3 * states + 2 * sums);
        block->C = (float *)(rest + 3 * states + 2 * sums + matrix);
    }
    return block;
}

/* A of a block, transposed and padded with zeros. */
static void load_A(Block *block, const Problem *p, int64_t first, int vecs) {
    int64_t padded = padded_state(p);
    memset(block->A, 0, sizeof(vec) * vecs * padded);
    for (int v = 0; v < vecs; v++) {
        block->reach[v] = (vec){0};
        for (int lane = 0; lane < lanes_at(p, first + v * W); lane++)
            for (int64_t n = 0; n < p->state; n++)
                block->A[v * padded + n][lane] = p->A[(first + v * W + lane) * p->state + n] * LOG2E;
        for (int64_t n = 0; n < p->state; n++)
            block->reach[v] = most(block->reach[v], absolute(block->A[v * padded + n]));
    }
}

/* A chunk of B or C, padded with zeros. */
static void load_matrix(float *to, const Problem *p, const View *matrix, int64_t batch, int64_t begin, int steps) {
    int64_t padded = padded_state(p);
    memset(to, 0, sizeof(float) * CHUNK * padded);
    int most_lanes = matrix->last == 1 ? W : 1;
    for (int64_t n = 0; n < p->state; n += most_lanes) {
        int lanes = smaller(most_lanes, p->state - n);
        Column from = column(matrix, batch, begin, n);
        for (int t = 0; t < steps; t++)
            store(to + t * padded + n, read(&from, t, lanes), lanes);
    }
}

static void load_matrices(Block *block, const Problem *p, int64_t batch, int64_t begin, int steps) {
    load_matrix(block->B, p, &p->B, batch, begin, steps);
    load_matrix(block->C, p, &p->C, batch, begin, steps);
}

/* Load a tile, and prefetch the one that begins `next` steps later. */
INLINE void load_tile(Tile *tile, const Problem *p, vec reach, int64_t batch, int64_t begin, int64_t next, int steps,
                      int64_t channel, int backward) {
    int lanes = lanes_at(p, channel);
    vec bias = p->delta_bias ? load(p->delta_bias + channel, lanes) : (vec){0};
    vec skip = p->D ? load(p->D + channel, lanes) : (vec){0};
    Column delta = column(&p->delta, batch, begin, channel), u = column(&p->u, batch, begin, channel);
    vec longest = {0};
    ivec nan = {0};
    for (int t = 0; t < steps; t++) {
        Step *step = &tile->steps[t];
        step->u = read(&u, t, lanes);
        step->dt = read(&delta, t, lanes) + bias;
        prefetch(&u, next + t);
        prefetch(&delta, next + t);
        if (p->softplus)
            step->dt = softplus(step->dt, backward ? &step->dt_slope : NULL);
        else
            step->dt_slope = (vec){0} + 1.f;
        step->input = step->dt * step->u;
        step->y = skip * step->u;
        longest = most(longest, absolute(step->dt));
        nan |= step->dt != step->dt;
    }
    tile->in_range = !any(nan | ~(longest * reach < EXPONENT_LIMIT));
}

INLINE void advance_within(Tile *tile, int steps, const vec *A, const float *B, const float *C, int64_t padded,
                           vec *state, History *history, vec *dC, int in_range) {
    vec h[GROUP];
    for (int i = 0; i < GROUP; i++)
        h[i] = state[i];
    for (int t = 0; t < steps; t++) {
        Step *step = &tile->steps[t];
        vec y = {0}, to_dC[GROUP];
        for (int i = 0; i < GROUP; i++) {
            vec decay = in_range ? exp2_product(step->dt, A[i]) : exp2_any(step->dt * A[i]);
            h[i] = decay * h[i] + step->input * B[t * padded + i];
            y += h[i] * C[t * padded + i];
            if (history) {
                history[t].decay[i] = decay;
                history[t + 1].h[i] = h[i];
                to_dC[i] = step->dy * h[i];
            }
        }
        step->y += y;
        if (history)
            dC[t * (padded / GROUP)] += sum_quads(to_dC);
    }
    for (int i = 0; i < GROUP; i++)
        state[i] = h[i];
}

/* Run GROUP states of a tile through time and add C h to its y; fill the history and add to dC unless it is null. */
INLINE void advance_group(Tile *tile, int steps, const vec *A, const float *B, const float *C, int64_t padded,
                          vec *state, History *history, vec *dC) {
    if (tile->in_range)
        advance_within(tile, steps, A, B, C, padded, state, history, dC, 1);
    else
        advance_within(tile, steps, A, B, C, padded, state, history, dC, 0);
}

static void forward_block(const Problem *p, const View *y, float *last, Block *block, int64_t batch, int64_t first,
                          int64_t width) {
    int64_t padded = padded_state(p);
    int vecs = smaller(width / W, ceil_div(p->channels - first, W));
    Tile *tile = &block->tile;
    load_A(block, p, first, vecs);
    memset(block->carry, 0, sizeof(vec) * vecs * padded);
    for (int64_t begin = 0; begin < p->length; begin += CHUNK) {
        int steps = smaller(CHUNK, p->length - begin);
        load_matrices(block, p, batch, begin, steps);
        for (int v = 0; v < vecs; v++) {
            int64_t channel = first + v * W;
            int lanes = lanes_at(p, channel);
            vec *A = block->A + v * padded, *state = block->carry + v * padded;
            if (p->starts)
                for (int64_t n = 0; n < p->state; n++)
                    store(start_at(p, batch, begin / CHUNK, channel) + n * lanes, state[n], lanes);
            load_tile(tile, p, block->reach[v], batch, begin, CHUNK, steps, channel, 0);
            for (int64_t n = 0; n < padded; n += GROUP)
                advance_group(tile, steps, A + n, block->B + n, block->C + n, padded, state + n, NULL, NULL);
            Column out = column(y, batch, begin, channel), gate = column(&p->z, batch, begin, channel);
            for (int t = 0; p->z.data && t < steps; t++) {
                vec z = read(&gate, t, lanes);
                prefetch(&gate, CHUNK + t);
                tile->steps[t].y *= z * sigmoid(z);
            }
            for (int t = 0; p->add && t < steps; t++)
                tile->steps[t].y += read(&out, t, lanes);
            for (int t = 0; t < steps; t++)
                write(&out, t, tile->steps[t].y, lanes);
        }
    }
    for (int v = 0; v < vecs; v++)
        for (int64_t n = 0; n < p->state; n++)
            store(last + (batch * p->state + n) * p->channels + first + v * W, block->carry[v * padded + n],
                  lanes_at(p, first + v * W));
}

/* Wide blocks read longer pieces of memory, narrow ones keep all threads busy. */
static int64_t forward_width(const Problem *p) {
    int64_t width = BACKWARD_BLOCK;
    while (width > BACKWARD_BLOCK / 4 && p->batch * ceil_div(p->channels, width) < 4 * p->threads)
        width /= 2;
    return width;
}

/* y [batch, L, D] like u; last [batch, N, D]. Returns 0 if there was not enough memory, else 1. */
int selective_scan_forward(const Problem *p, const View *y, float *last) {
    int64_t width = forward_width(p), blocks = ceil_div(p->channels, width);
    int failed = 0;
#pragma omp parallel num_threads(p->threads) reduction(| : failed)
    {
        Block *block = block_new(p);
        failed = !block;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < p->batch * blocks; task++)
            if (block)
                forward_block(p, y, last, block, task / blocks, task % blocks * width, width);
        free(block);
    }
    return !failed;
}

/* Inputs: dy [batch, L, D], and d_last [batch, N, D] or null. Outputs: the gradients of u, delta, z [batch, L, D], and
 * float32 partial sums for the others: dB, dC [blocks batch, L, N], dA [batch, D, N], dD and d_bias [batch, D]. */
typedef struct {
    View dy, du, d_delta, dz, dB, dC;
    float *d_last, *dA, *dD, *d_bias;
} Gradients;

/* The adjoint recurrence g_t = C_t dy_t + decay_{t+1} g_{t+1} of GROUP states, and the sums that need it. */
INLINE void retreat_group(Tile *tile, int steps, const vec *A, const float *B, const float *C, int64_t padded,
                          vec *adjoint, vec *dA, vec *dB, const History *history) {
    vec g[GROUP], sum_A[GROUP] = {{0}};
    for (int i = 0; i < GROUP; i++)
        g[i] = adjoint[i];
    for (int t = steps - 1; t >= 0; t--) {
        Step *step = &tile->steps[t];
        vec d_input = {0}, d_exponent = {0}, to_dB[GROUP];
        for (int i = 0; i < GROUP; i++) {
            g[i] += step->dy * C[t * padded + i];
            to_dB[i] = step->input * g[i];
            d_input += g[i] * B[t * padded + i];
            g[i] *= history[t].decay[i];
            vec through_decay = g[i] * history[t].h[i];
            sum_A[i] += through_decay * step->dt;
            d_exponent += through_decay * A[i];
        }
        dB[t * (padded / GROUP)] += sum_quads(to_dB);
        step->d_input += d_input;
        step->d_exponent += d_exponent;
    }
    for (int i = 0; i < GROUP; i++) {
        adjoint[i] = g[i];
        dA[i] += sum_A[i];
    }
}

static void load_gradient(Tile *tile, const Problem *p, const Gradients *grads, int64_t batch, int64_t begin,
                          int64_t next, int steps, int64_t channel) {
    int lanes = lanes_at(p, channel);
    Column dy = column(&grads->dy, batch, begin, channel), du = column(&grads->du, batch, begin, channel);
    Column d_delta = column(&grads->d_delta, batch, begin, channel);
    for (int t = 0; t < steps; t++) {
        Step *step = &tile->steps[t];
        step->dy = read(&dy, t, lanes);
        prefetch(&dy, next + t);
        prefetch_to_write(&du, t);
        prefetch_to_write(&d_delta, t);
        step->d_input = step->d_exponent = (vec){0};
    }
    if (!p->z.data)
        return;
    Column gate = column(&p->z, batch, begin, channel), dz = column(&grads->dz, batch, begin, channel);
    for (int t = 0; t < steps; t++) {
        Step *step = &tile->steps[t];
        vec z = read(&gate, t, lanes), open = sigmoid(z);
        prefetch(&gate, next + t);
        prefetch_to_write(&dz, t);
        step->gate_slope = step->dy * open * (1.f + z * (1.f - open));
        step->dy *= z * open;
    }
}

/* What remains once the sums over N are known. */
static void store_gradients(const Tile *tile, const Problem *p, const Gradients *grads, int64_t batch, int64_t begin,
                            int steps, int64_t channel, vec *dD, vec *d_bias) {
    int lanes = lanes_at(p, channel);
    vec skip = p->D ? load(p->D + channel, lanes) : (vec){0};
    vec sum_D = {0}, sum_bias = {0};
    Column du = column(&grads->du, batch, begin, channel), d_delta = column(&grads->d_delta, batch, begin, channel);
    for (int t = 0; t < steps; t++) {
        const Step *step = &tile->steps[t];
        vec d = (step->d_input * step->u + step->d_exponent * LN2) * step->dt_slope;
        sum_bias += d;
        sum_D += step->dy * step->u;
        write(&d_delta, t, d, lanes);
        write(&du, t, step->d_input * step->dt + step->dy * skip, lanes);
    }
    Column dz = column(&grads->dz, batch, begin, channel);
    for (int t = 0; p->z.data && t < steps; t++) {
        vec sum = tile->steps[t].gate_slope * tile->steps[t].y;
        if (p->add)
            sum += read(&dz, t, lanes);
        write(&dz, t, sum, lanes);
    }
    *d_bias += sum_bias;
    *dD += sum_D;
}

/* The sums over a block's channels, in the order of the states. */
static void store_matrix(const View *matrix, const Problem *p, const vec *sums, int64_t number, int64_t batch,
                         int64_t begin, int steps) {
    int64_t groups = padded_state(p) / GROUP;
    Column to = column(matrix, number * p->batch + batch, begin, 0);
    for (int t = 0; t < steps; t++)
        for (int64_t n = 0; n < p->state; n += GROUP) {
            quad sum = add_quarters(&sums[t * groups + n / GROUP]);
            memcpy((float *)(to.first + t * to.step) + n, &sum, sizeof(float) * smaller(GROUP, p->state - n));
        }
}

static void backward_block(const Problem *p, const Gradients *grads, Block *block, int64_t batch, int64_t number) {
    int64_t padded = padded_state(p), first = number * BACKWARD_BLOCK, sums = CHUNK * padded / GROUP;
    int vecs = smaller(MAX_VECS, ceil_div(p->channels - first, W));
    vec dD[MAX_VECS] = {{0}}, d_bias[MAX_VECS] = {{0}};
    Tile *tile = &block->tile;
    History history[CHUNK + 1];
    load_A(block, p, first, vecs);
    memset(block->dA, 0, sizeof(vec) * vecs * padded);
    memset(block->carry, 0, sizeof(vec) * vecs * padded);
    for (int v = 0; v < vecs; v++)
        for (int64_t n = 0; grads->d_last && n < p->state; n++)
            block->carry[v * padded + n] = load(grads->d_last + (batch * p->state + n) * p->channels + first + v * W,
                                                lanes_at(p, first + v * W));
    for (int64_t chunk = ceil_div(p->length, CHUNK) - 1; chunk >= 0; chunk--) {
        int64_t begin = chunk * CHUNK;
        int steps = smaller(CHUNK, p->length - begin);
        load_matrices(block, p, batch, begin, steps);
        memset(block->dB, 0, sizeof(vec) * sums);
        memset(block->dC, 0, sizeof(vec) * sums);
        for (int v = 0; v < vecs; v++) {
            int64_t channel = first + v * W;
            int lanes = lanes_at(p, channel);
            const float *start = start_at(p, batch, chunk, channel);
            load_tile(tile, p, block->reach[v], batch, begin, -CHUNK, steps, channel, 1);
            load_gradient(tile, p, grads, batch, begin, -CHUNK, steps, channel);
            for (int64_t n = 0; n < padded; n += GROUP) {
                int64_t offset = v * padded + n, group = n / GROUP;
                vec state[GROUP] = {{0}};
                for (int i = 0; i < smaller(GROUP, p->state - n); i++)
                    state[i] = load(start + (n + i) * lanes, lanes);
                memcpy(history[0].h, state, sizeof state);
                advance_group(tile, steps, block->A + offset, block->B + n, block->C + n, padded, state, history,
                              block->dC + group);
                retreat_group(tile, steps, block->A + offset, block->B + n, block->C + n, padded, block->carry + offset,
                              block->dA + offset, block->dB + group, history);
            }
            store_gradients(tile, p, grads, batch, begin, steps, channel, &dD[v], &d_bias[v]);
        }
        store_matrix(&grads->dB, p, block->dB, number, batch, begin, steps);
        store_matrix(&grads->dC, p, block->dC, number, batch, begin, steps);
    }
    for (int v = 0; v < vecs; v++) {
        int64_t channel = first + v * W;
        store(grads->dD + batch * p->channels + channel, dD[v], lanes_at(p, channel));
        store(grads->d_bias + batch * p->channels + channel, d_bias[v], lanes_at(p, channel));
        for (int lane = 0; lane < lanes_at(p, channel); lane++)
            for (int64_t n = 0; n < p->state; n++)
                grads->dA[(batch * p->channels + channel + lane) * p->state + n] = block->dA[v * padded + n][lane];
    }
}

/* Returns 0 if there was not enough memory, else 1. */
int selective_scan_backward(const Problem *p, const Gradients *grads) {
    int64_t blocks = ceil_div(p->channels, BACKWARD_BLOCK);
    int failed = 0;
#pragma omp parallel num_threads(p->threads) reduction(| : failed)
    {
        Block *block = block_new(p);
        failed = !block;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < p->batch * blocks; task++)
            if (block)
                backward_block(p, grads, block, task / blocks, task % blocks);
        free(block);
    }
    return !failed;
}

/* The causal depthwise convolution with an optional SiLU, and its gradient, on channels-last tensors:
 *
 *     y_t = silu(bias + sum over lags of weight[taps - 1 - lag] x_{t - lag})
 *
 * Inputs and outputs are float32, bfloat16 or float16 each; sums are float32. A task is a block of channels of one batch
 * entry, so the results do not depend on the number of threads. */
#include "tensor.h"

/* Time is cut into chunks, so that neighbouring channels are read together. Sums over time are formed per chunk and
 * then added up, which keeps their rounding error small. */
enum { BLOCK = 96, VECS = BLOCK / W, MAX_TAPS = 16, CHUNK = 32 };

/* x, y [batch, L, D] have last stride 1; weight [D, taps] and bias [D] (or null) are contiguous float32. Backward
 * reads dy, adds `more` to it unless its data is null, and writes dx [batch, L, D], or with `add` adds to it, and
 * float32 d_weight [batch, D, taps] and d_bias [batch, D]. */
typedef struct {
    int64_t batch, length, channels, taps, threads, silu, add;
    View x, y, dy, more, dx;
    float *weight, *bias, *d_weight, *d_bias;
} Convolution;

/* W channels: their weights, and in backward the sums of the weights' gradients. */
typedef struct {
    vec by_lag[MAX_TAPS], bias;
    vec d_by_lag[MAX_TAPS], d_bias;
    vec d[MAX_TAPS]; /* the gradients before the SiLU of the last steps, the latest first */
} Filter;

static void load_filter(Filter *filter, const Convolution *c, int64_t channel, int lanes) {
    memset(filter, 0, sizeof *filter);
    if (c->bias)
        filter->bias = load(c->bias + channel, lanes);
    for (int lag = 0; lag < c->taps; lag++)
        for (int lane = 0; lane < lanes; lane++)
            filter->by_lag[lag][lane] = c->weight[(channel + lane) * c->taps + c->taps - 1 - lag];
}

/* Put the newest value in front of those of `taps` steps. */
INLINE void shift(vec *window, vec newest, int taps) {
    for (int lag = taps - 1; lag > 0; lag--)
        window[lag] = window[lag - 1];
    window[0] = newest;
}

/* The inputs before step t, as a window whose next shift brings x_t. */
INLINE void load_window(vec *window, const Column *x, int64_t t, int lanes, int taps) {
    for (int lag = 0; lag < taps; lag++)
        window[lag] = lag < t ? read(x, t - 1 - lag, lanes) : (vec){0};
}

/* The convolution before the SiLU. */
INLINE vec convolve(const Filter *filter, const vec *x, int taps) {
    vec y = filter->bias;
    for (int lag = 0; lag < taps; lag++)
        y += filter->by_lag[lag] * x[lag];
    return y;
}

INLINE void forward_chunk(const Convolution *c, Filter *filter, int64_t batch, int64_t begin, int64_t end,
                          int64_t channel, int lanes, int taps) {
    Column x = column(&c->x, batch, 0, channel), y = column(&c->y, batch, 0, channel);
    vec window[MAX_TAPS];
    load_window(window, &x, begin, lanes, taps);
    for (int64_t t = begin; t < end; t++) {
        shift(window, read(&x, t, lanes), taps);
        prefetch(&x, t + CHUNK);
        vec sum = convolve(filter, window, taps);
        write(&y, t, c->silu ? sum * sigmoid(sum) : sum, lanes);
    }
}

/* dx_t needs the d of the taps - 1 steps after t, so it is stored that much later. */
INLINE void backward_chunk(const Convolution *c, Filter *filter, int64_t batch, int64_t begin, int64_t end,
                           int64_t channel, int lanes, int taps) {
    Column x = column(&c->x, batch, 0, channel), dy = column(&c->dy, batch, 0, channel);
    Column more = c->more.data ? column(&c->more, batch, 0, channel) : (Column){0};
    Column dx = column(&c->dx, batch, 0, channel);
    vec window[MAX_TAPS], d[MAX_TAPS], d_by_lag[MAX_TAPS] = {{0}}, d_bias = {0};
    load_window(window, &x, begin, lanes, taps);
    memcpy(d, filter->d, sizeof(vec) * taps);
    int64_t last = end == c->length ? end + taps - 1 : end;
    for (int64_t t = begin; t < last; t++) {
        vec d_t = {0};
        if (t < end) {
            d_t = read(&dy, t, lanes);
            shift(window, read(&x, t, lanes), taps);
            if (more.first) {
                d_t += read(&more, t, lanes);
                prefetch(&more, t + CHUNK);
            }
            prefetch(&dy, t + CHUNK);
            prefetch(&x, t + CHUNK);
            if (c->silu) {
                vec y = convolve(filter, window, taps), open = sigmoid(y);
                d_t *= open * (1.f + y * (1.f - open));
            }
            d_bias += d_t;
            for (int lag = 0; lag < taps; lag++)
                d_by_lag[lag] += d_t * window[lag];
        }
        shift(d, d_t, taps);
        if (t >= taps - 1) {
            vec sum = d[taps - 1] * filter->by_lag[0];
            for (int lag = 1; lag < taps; lag++)
                sum += d[taps - 1 - lag] * filter->by_lag[lag];
            if (c->add)
                sum += read(&dx, t - (taps - 1), lanes);
            write(&dx, t - (taps - 1), sum, lanes);
        }
    }
    memcpy(filter->d, d, sizeof(vec) * taps);
    filter->d_bias += d_bias;
    for (int lag = 0; lag < taps; lag++)
        filter->d_by_lag[lag] += d_by_lag[lag];
}

static void store_filter(const Filter *filter, const Convolution *c, int64_t batch, int64_t channel, int lanes) {
    store(c->d_bias + batch * c->channels + channel, filter->d_bias, lanes);
    for (int lag = 0; lag < c->taps; lag++)
        for (int lane = 0; lane < lanes; lane++)
            c->d_weight[(batch * c->channels + channel + lane) * c->taps + c->taps - 1 - lag] =
                filter->d_by_lag[lag][lane];
}

static void do_block(const Convolution *c, int64_t batch, int64_t first, int backward) {
    Filter filters[VECS];
    int vecs = smaller(VECS, ceil_div(c->channels - first, W));
    for (int v = 0; v < vecs; v++)
        load_filter(&filters[v], c, first + v * W, smaller(W, c->channels - first - v * W));
    for (int64_t begin = 0; begin < c->length; begin += CHUNK)
        for (int v = 0; v < vecs; v++) {
            int64_t end = smaller(begin + CHUNK, c->length), channel = first + v * W;
            int lanes = smaller(W, c->channels - channel);
            /* With 4 taps, the usual number, the windows stay in registers. */
            if (backward && c->taps == 4)
                backward_chunk(c, &filters[v], batch, begin, end, channel, lanes, 4);
            else if (backward)
                backward_chunk(c, &filters[v], batch, begin, end, channel, lanes, c->taps);
            else if (c->taps == 4)
                forward_chunk(c, &filters[v], batch, begin, end, channel, lanes, 4);
            else
                forward_chunk(c, &filters[v], batch, begin, end, channel, lanes, c->taps);
        }
    for (int v = 0; backward && v < vecs; v++)
        store_filter(&filters[v], c, batch, first + v * W, smaller(W, c->channels - first - v * W));
}

static void do_blocks(const Convolution *c, int backward) {
    int64_t blocks = ceil_div(c->channels, BLOCK);
#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t task = 0; task < c->batch * blocks; task++)
        do_block(c, task / blocks, task % blocks * BLOCK, backward);
}

void causal_conv1d_forward(const Convolution *c) { do_blocks(c, 0); }

void causal_conv1d_backward(const Convolution *c) { do_blocks(c, 1); }

/* The causal depthwise convolution with an optional SiLU, and its gradient, on channels-last float32 tensors:
 *
 *     y_t = silu(bias + sum over lags of weight[taps - 1 - lag] x_{t - lag})
 *
 * A task is a block of channels of one batch entry, so the results do not depend on the number of threads. */
#include "tensor.h"
#include "vec.h"

/* Sums over time are formed per chunk and then added up, which keeps their rounding error small. */
enum { BLOCK = 32, MAX_TAPS = 16, CHUNK = 64 };

/* x, y [batch, L, D] have last stride 1; weight [D, taps] and bias [D] (or null) are contiguous. Backward
 * reads dy and writes dx [batch, L, D], d_weight [batch, D, taps] and d_bias [batch, D]. */
typedef struct {
    int64_t batch, length, channels, taps, threads, silu;
    View x, y, dy, dx;
    float *weight, *bias, *d_weight, *d_bias;
} Convolution;

static void load_weight(vec *by_lag, const Convolution *c, int64_t channel, int lanes) {
    for (int lag = 0; lag < c->taps; lag++) {
        by_lag[lag] = (vec){0};
        for (int lane = 0; lane < lanes; lane++)
            by_lag[lag][lane] = c->weight[(channel + lane) * c->taps + c->taps - 1 - lag];
    }
}

/* The convolution before the SiLU. */
INLINE vec convolve(const Convolution *c, const vec *by_lag, vec bias, int64_t batch, int64_t t, int64_t channel,
                    int lanes) {
    for (int lag = 0; lag < smaller(c->taps, t + 1); lag++)
        bias += by_lag[lag] * load(at(c->x, batch, t - lag, channel), lanes);
    return bias;
}

static void forward_channels(const Convolution *c, int64_t batch, int64_t channel, int lanes) {
    vec by_lag[MAX_TAPS], bias = c->bias ? load(c->bias + channel, lanes) : (vec){0};
    load_weight(by_lag, c, channel, lanes);
    for (int64_t t = 0; t < c->length; t++) {
        vec y = convolve(c, by_lag, bias, batch, t, channel, lanes);
        store(at(c->y, batch, t, channel), c->silu ? y * sigmoid(y) : y, lanes);
    }
}

static void backward_channels(const Convolution *c, int64_t batch, int64_t channel, int lanes) {
    vec by_lag[MAX_TAPS], bias = c->bias ? load(c->bias + channel, lanes) : (vec){0};
    vec d_by_lag[MAX_TAPS] = {{0}}, d_bias = {0};
    load_weight(by_lag, c, channel, lanes);
    for (int64_t begin = 0; begin < c->length; begin += CHUNK) {
        vec chunk_by_lag[MAX_TAPS] = {{0}}, chunk_bias = {0};
        for (int64_t t = begin; t < smaller(begin + CHUNK, c->length); t++) {
            vec d = load(at(c->dy, batch, t, channel), lanes);
            if (c->silu) {
                vec y = convolve(c, by_lag, bias, batch, t, channel, lanes), open = sigmoid(y);
                d *= open * (1.f + y * (1.f - open));
            }
            chunk_bias += d;
            for (int lag = 0; lag < smaller(c->taps, t + 1); lag++) {
                float *dx = at(c->dx, batch, t - lag, channel);
                store(dx, (lag ? load(dx, lanes) : (vec){0}) + d * by_lag[lag], lanes);
                chunk_by_lag[lag] += d * load(at(c->x, batch, t - lag, channel), lanes);
            }
        }
        d_bias += chunk_bias;
        for (int lag = 0; lag < c->taps; lag++)
            d_by_lag[lag] += chunk_by_lag[lag];
    }
    store(c->d_bias + batch * c->channels + channel, d_bias, lanes);
    for (int lag = 0; lag < c->taps; lag++)
        for (int lane = 0; lane < lanes; lane++)
            c->d_weight[(batch * c->channels + channel + lane) * c->taps + c->taps - 1 - lag] = d_by_lag[lag][lane];
}

static void for_channels(const Convolution *c, void (*work)(const Convolution *, int64_t, int64_t, int)) {
    int64_t blocks = ceil_div(c->channels, BLOCK);
#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t task = 0; task < c->batch * blocks; task++) {
        int64_t first = task % blocks * BLOCK, end = smaller(first + BLOCK, c->channels);
        for (int64_t channel = first; channel < end; channel += W)
            work(c, task / blocks, channel, smaller(W, end - channel));
    }
}

void causal_conv1d_forward(const Convolution *c) { for_channels(c, forward_channels); }

void causal_conv1d_backward(const Convolution *c) { for_channels(c, backward_channels); }

/* Vectors of floats as wide as the machine's registers, through the vector extensions that GCC and Clang share, and
 * the few functions on them that the kernels need. The same source compiles for AVX-512, AVX2, SSE and NEON. */
#ifndef VEC_H
#define VEC_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX__)
#define W 8
#else
#define W 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * W)));
typedef float quad __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(4 * W)));

static const float LOG2E = 1.44269504f, LN2 = 0.693147181f;
static const float EXPONENT_LIMIT = 126.f; /* of exp2_product */

static __attribute__((noinline)) vec load_some(const float *from, int lanes) {
    vec v = {0};
    memcpy(&v, from, sizeof(float) * lanes);
    return v;
}

/* The first `lanes` values from memory of any alignment; the other lanes are zero. */
INLINE vec load(const float *from, int lanes) {
    if (lanes < W)
        return load_some(from, lanes);
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float *to, vec v, int lanes) {
    if (lanes == W)
        memcpy(to, &v, sizeof v);
    else
        memcpy(to, &v, sizeof(float) * lanes);
}

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec absolute(vec v) { return (vec)((ivec)v & 0x7fffffff); }

INLINE int any(ivec mask) {
    int32_t found = 0;
    for (int i = 0; i < W; i++)
        found |= mask[i];
    return found != 0;
}

/* By quarters, which every machine adds fast, instead of a chain of W additions. */
INLINE float sum_lanes(const vec *v) {
    quad sum = {0}, part;
    for (int i = 0; i < W; i += 4) {
        memcpy(&part, (const float *)v + i, sizeof part);
        sum += part;
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* 2^(a b) for |a b| < EXPONENT_LIMIT. The integer part of a b goes to the exponent; the polynomial (minimax on
 * [-1/2, 1/2], relative error 2e-9, exact at 0) takes the rest, which a fused multiply-add
 * forms without rounding a b. */
INLINE vec exp2_product(vec a, vec b) {
    const float to_integer = 12582912.f; /* 1.5 * 2^23: adding it leaves the rounded integer in the low bits */
    vec shifted = a * b + to_integer;
    vec r = a * b - (shifted - to_integer);
    vec p = r * 1.53533619e-4f + 1.33988744e-3f;
    p = p * r + 9.61843736e-3f;
    p = p * r + 5.55033247e-2f;
    p = p * r + 2.40226479e-1f;
    p = p * r + 6.93147203e-1f;
    p = p * r + 1.f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

/* 2^x for every x. It saturates at 2^-126 and 2^127, and NaN stays NaN. */
INLINE vec exp2_any(vec x) {
    const vec one = (vec){0} + 1.f, low = (vec){0} - 126.f, high = (vec){0} + 127.f;
    x = choose(x < low, low, x);
    x = choose(x > high, high, x);
    return exp2_product(x, one);
}

INLINE vec sigmoid(vec x) { return 1.f / (1.f + exp2_any(x * -LOG2E)); }

/* log(1 + e^x) = max(x, 0) + log(1 + e), e = exp(-|x|), with log(1 + e) = 2 artanh(s), s = e / (2 + e). */
INLINE vec softplus(vec x) {
    vec zero = {0};
    ivec positive = x > zero;
    vec e = exp2_any(choose(positive, -x, x) * LOG2E);
    vec s = e / (e + 2.f), w = s * s;
    vec p = w * 0.28011987f + 0.28001805f;
    p = p * w + 0.40021527f;
    p = p * w + 0.66666416f;
    p = p * w + 2.f;
    return s * p + choose(positive, x, zero);
}

#endif

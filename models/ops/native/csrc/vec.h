/* Vectors of floats as wide as the machine's registers, through the vector extensions that GCC and Clang share, and
 * the few functions on them that the kernels need. The same source compiles for AVX-512, AVX2, SSE and NEON. */
#ifndef VEC_H
#define VEC_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

/* QUADS lists lane numbers for SHUFFLE: the same four in each quarter of the lanes. */
#if defined(__AVX512F__)
#define W 16
#define QUADS(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12
#elif defined(__AVX__)
#define W 8
#define QUADS(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4
#else
#define W 4
#define QUADS(a, b, c, d) a, b, c, d
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * W)));
typedef float quad __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(4 * W)));
typedef uint32_t uvec __attribute__((vector_size(4 * W)));
typedef uint16_t hvec __attribute__((vector_size(2 * W))); /* W values of two bytes */

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

INLINE hvec load_halves(const void *from, int lanes) {
    hvec v = {0};
    if (lanes == W)
        memcpy(&v, from, sizeof v);
    else
        memcpy(&v, from, 2 * lanes);
    return v;
}

INLINE void store_halves(void *to, hvec v, int lanes) {
    if (lanes == W)
        memcpy(to, &v, sizeof v);
    else
        memcpy(to, &v, 2 * lanes);
}

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* The smaller or larger of each pair; the second where either is NaN. */
#if defined(__AVX512F__)
INLINE vec least(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec most(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#else
INLINE vec least(vec a, vec b) { return choose(a < b, a, b); }
INLINE vec most(vec a, vec b) { return choose(a > b, a, b); }
#endif
INLINE vec absolute(vec v) { return (vec)((ivec)v & 0x7fffffff); }

INLINE vec from_bfloat16(hvec halves) { return (vec)(__builtin_convertvector(halves, uvec) << 16); }

/* Rounded to nearest, ties to even. */
INLINE hvec to_bfloat16(vec v) {
    uvec bits = (uvec)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
    ivec nan = v != v;
    return __builtin_convertvector(((rounded & ~(uvec)nan) | (0x7fc00000 & (uvec)nan)) >> 16, hvec);
}

#if defined(__AVX512F__)
INLINE vec from_float16(hvec halves) { return (vec)_mm512_cvtph_ps((__m256i)halves); }
INLINE hvec to_float16(vec v) { return (hvec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__)
INLINE vec from_float16(hvec halves) { return (vec)_mm256_cvtph_ps((__m128i)halves); }
INLINE hvec to_float16(vec v) { return (hvec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
/* By arithmetic on the bits: not every compiler has a type for float16. */
INLINE vec from_float16(hvec halves) {
    uvec bits = __builtin_convertvector(halves, uvec), size = bits & 0x7fff;
    vec v = (vec)((size << 13) + (112 << 23)); /* the exponents' biases differ by 112 */
    v = choose(size < 0x400, __builtin_convertvector((ivec)size, vec) * 0x1p-24f, v); /* subnormal */
    v = choose(size >= 0x7c00, (vec)(size << 13 | 0x7f800000), v);                    /* infinite or NaN */
    return (vec)((uvec)v | (bits & 0x8000) << 16);
}
/* Rounded to nearest, ties to even. */
INLINE hvec to_float16(vec v) {
    const uvec limit = (uvec){0} + 0x47800000; /* 2^16, and 0x7c00 below: infinite */
    uvec bits = (uvec)v, size = (uvec)least((vec)limit, absolute(v));
    uvec half = ((size + 0xfff + (size >> 13 & 1)) >> 13) - (112 << 10);
    uvec subnormal = (uvec)((vec)size + 0.5f) - 0x3f000000; /* the sum is rounded to a multiple of 2^-24 */
    half = (uvec)choose(size < 0x38800000, (vec)subnormal, (vec)half);
    half = (uvec)choose(v != v, (vec)((uvec){0} + 0x7e00), (vec)half);
    return __builtin_convertvector(half | (bits >> 16 & 0x8000), hvec);
}
#endif

INLINE int any(ivec mask) {
    int32_t found = 0;
    for (int i = 0; i < W; i++)
        found |= mask[i];
    return found != 0;
}

/* The sums over lanes of four vectors, before the last step: the quarters of the result, added up, are the sums. */
INLINE vec sum_quads(const vec *v) {
    vec ab = SHUFFLE(v[0], v[1], QUADS(0, W, 1, W + 1)) + SHUFFLE(v[0], v[1], QUADS(2, W + 2, 3, W + 3));
    vec cd = SHUFFLE(v[2], v[3], QUADS(0, W, 1, W + 1)) + SHUFFLE(v[2], v[3], QUADS(2, W + 2, 3, W + 3));
    return SHUFFLE(ab, cd, QUADS(0, 1, W, W + 1)) + SHUFFLE(ab, cd, QUADS(2, 3, W + 2, W + 3));
}

INLINE quad add_quarters(const vec *v) {
    quad sum = {0}, part;
    for (int i = 0; i < W; i += 4) {
        memcpy(&part, (const float *)v + i, sizeof part);
        sum += part;
    }
    return sum;
}

/* 2^(a b) for |a b| < EXPONENT_LIMIT, exact where a b is 0. The integer part of a b goes to the exponent, a minimax
 * polynomial (relative error 2.3e-9) takes the rest, which a fused multiply-add forms without rounding a b. */
#if defined(__AVX512F__)
/* One instruction looks up the sixteenth root for the next four bits, which leaves [-1/32, 1/32] to the polynomial. */
INLINE vec exp2_product(vec a, vec b) {
    const float to_sixteenths = 786432.f; /* 1.5 * 2^19: adding it leaves the rounded sixteenths in the low bits */
    /* 2^(i/16) - (i << 19), since the bits of i are added twice */
    const ivec roots = {0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
                        0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
    vec x = a * b;
    __asm__("" : "+v"(x));
    vec shifted = x + to_sixteenths;
    vec r = x - (shifted - to_sixteenths);
    vec scale = (vec)((ivec)_mm512_permutexvar_epi32((__m512i)shifted, (__m512i)roots) + ((ivec)shifted << 19));
    vec p = r * 0.05550601f + 0.2402359f;
    p = p * r + 0.6931472f;
    return scale * (p * r) + scale;
}
#else
/* The polynomial takes [-1/2, 1/2]. */
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
#endif

/* 2^x for every x. It saturates at 2^-126 and 2^127, and NaN stays NaN. */
INLINE vec exp2_any(vec x) {
    const vec one = (vec){0} + 1.f, low = (vec){0} - 126.f, high = (vec){0} + 127.f;
    return exp2_product(least(high, most(low, x)), one);
}

INLINE vec sigmoid(vec x) { return 1.f / (1.f + exp2_any(x * -LOG2E)); }

/* log(1 + e^x) = max(x, 0) + log(1 + e), e = exp(-|x|), with log(1 + e) = 2 artanh(s), s = e / (2 + e). Its slope,
 * the sigmoid of x, goes to `slope` unless that is null. */
INLINE vec softplus(vec x, vec *slope) {
    vec e = exp2_any(absolute(x) * -LOG2E);
    vec s = e / (e + 2.f), w = s * s;
    vec p = w * 0.28011987f + 0.28001805f;
    p = p * w + 0.40021527f;
    p = p * w + 0.66666416f;
    p = p * w + 2.f;
    if (slope)
        *slope = choose(x > 0.f, (vec){0} + 1.f, e) / (1.f + e);
    return s * p + most((vec){0}, x);
}

#endif

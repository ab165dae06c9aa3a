/* Views of tensors, and arithmetic on sizes. */
#ifndef TENSOR_H
#define TENSOR_H

#include "vec.h"

/* Values are read and written in these types; all arithmetic is float32. */
enum { FLOAT32, BFLOAT16, FLOAT16 };

/* A [batch, time, last] tensor with its strides in elements; null data where an optional one is absent. */
typedef struct {
    char *data;
    int64_t batch, time, last, type;
} View;

INLINE char *address(const View *v, int64_t batch, int64_t time, int64_t last) {
    int64_t index = batch * v->batch + time * v->time + last * v->last;
    return v->data + index * (v->type == FLOAT32 ? 4 : 2);
}

/* `lanes` neighbours along the last dimension, whose stride is 1. */
INLINE vec load_at(const View *v, int64_t batch, int64_t time, int64_t last, int lanes) {
    const char *from = address(v, batch, time, last);
    if (v->type == FLOAT32)
        return load((const float *)from, lanes);
    hvec halves = load_halves(from, lanes);
    return v->type == BFLOAT16 ? from_bfloat16(halves) : from_float16(halves);
}

INLINE void store_at(const View *v, int64_t batch, int64_t time, int64_t last, vec value, int lanes) {
    char *to = address(v, batch, time, last);
    if (v->type == FLOAT32)
        store((float *)to, value, lanes);
    else
        store_halves(to, v->type == BFLOAT16 ? to_bfloat16(value) : to_float16(value), lanes);
}

/* Ask for the cache line of an element that is about to be read or written. The element need not exist. */
INLINE void prefetch(const View *v, int64_t batch, int64_t time, int64_t last) {
    __builtin_prefetch(address(v, batch, time, last));
}

INLINE void prefetch_to_write(const View *v, int64_t batch, int64_t time, int64_t last) {
    __builtin_prefetch(address(v, batch, time, last), 1);
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int smaller(int64_t a, int64_t b) { return (int)(a < b ? a : b); }

#endif

/* Views of tensors, and arithmetic on sizes. */
#ifndef TENSOR_H
#define TENSOR_H

#include "vec.h"

/* Values are read and written in these types; all arithmetic is float32. */
enum { FLOAT32, BFLOAT16, FLOAT16 };

/* A [batch, time, last] tensor with its strides in elements; null data where an optional one is absent. To walk backward
 * through time, `data` is at the last step and the stride `time` is negative. */
typedef struct {
    char *data;
    int64_t batch, time, last, type;
} View;

INLINE char *address(const View *v, int64_t batch, int64_t time, int64_t last) {
    int64_t index = batch * v->batch + time * v->time + last * v->last;
    return v->data + index * (v->type == FLOAT32 ? 4 : 2);
}

/* `lanes` neighbours along the last dimension, over time: the first is that of one time step. */
typedef struct {
    char *first;
    int64_t step, type; /* bytes from one time step to the next */
} Column;

INLINE Column column(const View *v, int64_t batch, int64_t time, int64_t last) {
    return (Column){address(v, batch, time, last), v->time * (v->type == FLOAT32 ? 4 : 2), v->type};
}

INLINE vec read(const Column *c, int64_t t, int lanes) {
    const char *from = c->first + t * c->step;
    if (c->type == FLOAT32)
        return load((const float *)from, lanes);
    hvec halves = load_halves(from, lanes);
    return c->type == BFLOAT16 ? from_bfloat16(halves) : from_float16(halves);
}

INLINE void write(const Column *c, int64_t t, vec value, int lanes) {
    char *to = c->first + t * c->step;
    if (c->type == FLOAT32)
        store((float *)to, value, lanes);
    else
        store_halves(to, c->type == BFLOAT16 ? to_bfloat16(value) : to_float16(value), lanes);
}

/* Ask for the cache line of a time step that is about to be read or written. It need not exist. */
INLINE void prefetch(const Column *c, int64_t t) { __builtin_prefetch(c->first + t * c->step); }
INLINE void prefetch_to_write(const Column *c, int64_t t) { __builtin_prefetch(c->first + t * c->step, 1); }

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int smaller(int64_t a, int64_t b) { return (int)(a < b ? a : b); }

#endif

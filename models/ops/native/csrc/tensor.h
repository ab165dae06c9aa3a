/* Views of tensors, and arithmetic on sizes. */
#ifndef TENSOR_H
#define TENSOR_H

#include <stdint.h>

/* A float32 [batch, time, last] tensor with its strides in elements; null data where an optional one is absent. */
typedef struct {
    float *data;
    int64_t batch, time, last;
} View;

static inline float *at(View v, int64_t batch, int64_t time, int64_t last) {
    return v.data + batch * v.batch + time * v.time + last * v.last;
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int smaller(int64_t a, int64_t b) { return (int)(a < b ? a : b); }

#endif

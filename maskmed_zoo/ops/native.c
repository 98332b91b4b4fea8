/* 3-D multi-scale deformable attention on the CPU: forward and backward, without any header of PyTorch.
 *
 * Idea: rows of c channels are gathered in an order no hardware prefetcher guesses, so the time goes into cache misses.
 * Samples are therefore handled in blocks of 16: while one block is summed up, the rows of the next one, located just
 * before, are prefetched sample by sample. A corner outside its level reads a row of zeros, so that nothing branches.
 * The forward pass is split over (batch, head, queries). The backward pass is split over (batch, head) or (batch, head,
 * level): each part owns its rows of the gradient and takes its samples in the order of the queries, so there are no
 * atomics, and the result is the same, bit by bit, for any number of threads.
 *
 * The file includes itself once per instruction set and type of the values; the caller picks by number. */

#ifndef MSDA_KERNEL

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BLOCK 16
#define LINE 64
#define UNROLL _Pragma("GCC unroll 8")
#define NOWHERE (-9) /* a location outside of every level */

/* Strides of values (b s h c) count elements, the stride of c is 1; everything else is contiguous. Locations, weights
 * and their gradients are double where the values are, else float; grad_values likewise, of zeros before. NULL: gradient not wanted. */
typedef struct {
    const void *values, *locations, *weights, *grad_output;
    void *output, *grad_values, *grad_locations, *grad_weights;
    const int64_t *shapes;
    int64_t b, s, q, h, c, l, p;
    int64_t stride_b, stride_s, stride_h;
    int64_t threads, fresh; /* fresh: grad_values are float, begin at a page, and nothing is in memory yet */
} problem;

typedef int (*part)(const problem *, int64_t);

typedef struct {
    const problem *of;
    part run;
    int64_t parts, next;
    int failed;
} work;

static void *worker(void *shared) {
    work *todo = shared;
    int64_t i;
    while ((i = __atomic_fetch_add(&todo->next, 1, __ATOMIC_RELAXED)) < todo->parts)
        if (todo->run(todo->of, i)) __atomic_store_n(&todo->failed, 1, __ATOMIC_RELAXED);
    return NULL;
}

/* Threads live for one call: nothing to hold in a forked process, and a start costs less than a thousandth of a pass. */
static int parallel(const problem *of, part run, int64_t parts, int64_t threads) {
    work todo = {of, run, parts, 0, 0};
    pthread_t started[256];
    int64_t n = threads < parts ? threads : parts, got = 0;
    if (n > 256) n = 256;
    while (got < n - 1 && pthread_create(&started[got], NULL, worker, &todo) == 0) got++;
    worker(&todo);
    for (int64_t i = 0; i < got; i++) pthread_join(started[i], NULL);
    return todo.failed;
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Queries of one part of the forward pass: their sums stay in the first-level cache. */
static int64_t queries_per_part(const problem *of) {
    int64_t n = 4096 / (of->c > 0 ? of->c : 1);
    return n < 8 ? 8 : n;
}

static int by_level(const problem *of) { return of->b * of->h < 4 * of->threads; }

/* Pages of fresh memory, made in order and many at a time: one by one, as rows are added to, they take twice as long.
 * Where the system cannot (before Linux 5.14), nothing is lost but that. */
#define PAGES ((int64_t)1 << 22)
static int64_t gradient_bytes(const problem *of) { return of->b * of->s * of->h * of->c * 4; }
static int make_pages(const problem *of, int64_t i) {
#if defined(__linux__)
    const int64_t all = gradient_bytes(of) & ~(int64_t)4095;
    if (i * PAGES < all) madvise((char *)of->grad_values + i * PAGES, smaller(PAGES, all - i * PAGES), 23);
#else
    (void)of, (void)i;
#endif
    return 0;
}

#define MSDA_KERNEL
#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(x) JOIN(x, ISA, TYPE)

#define ISA generic
#define VECTOR 16
#include "native.c"
#undef ISA
#undef VECTOR

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define VECTOR 32
#include "native.c"
#undef ISA
#undef VECTOR
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define ISA avx512
#define VECTOR 64
#include "native.c"
#undef ISA
#undef VECTOR
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* 0 plain C, 1 AVX2, 2 AVX-512: the best this processor has. */
int msda_best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            return 2;
        return 1;
    }
#endif
    return 0;
}

#if defined(__x86_64__)
#define PICK(pass) {{pass##_generic_f32, pass##_generic_bf16, pass##_generic_f64}, \
                    {pass##_avx2_f32, pass##_avx2_bf16, pass##_generic_f64}, \
                    {pass##_avx512_f32, pass##_avx512_bf16, pass##_generic_f64}}
#else
#define PICK(pass) {{pass##_generic_f32, pass##_generic_bf16, pass##_generic_f64}}
#endif

/* Rows that are no whole number of long vectors go better in short ones. */
static int fitting(const problem *of, int set) { return set == 2 && of->c % 16 ? 1 : set; }

/* `type` is 0 float, 1 bfloat16, 2 double. Both return 0, or 1 where memory ran out. */
int msda_forward(const problem *of, int set, int type) {
    static const part table[][3] = PICK(forward);
    set = fitting(of, set);
    int64_t chunks = (of->q + queries_per_part(of) - 1) / queries_per_part(of);
    return parallel(of, table[set][type], of->b * of->h * chunks, of->threads);
}

int msda_backward(const problem *of, int set, int type) {
    static const part table[][3] = PICK(backward);
    set = fitting(of, set);
    if (of->fresh) parallel(of, make_pages, (gradient_bytes(of) + PAGES - 1) / PAGES, of->threads);
    return parallel(of, table[set][type], of->b * of->h * (by_level(of) ? of->l : 1), of->threads);
}

#elif !defined(TYPE) /* one instruction set: its types */

#define TYPE f32
#define VALUE float
#define REAL float
#define INTEGER int32_t
#include "native.c"
#undef TYPE
#undef VALUE
#define TYPE bf16
#define VALUE uint16_t
#define HALF
#include "native.c"
#undef HALF
#undef TYPE
#undef VALUE
#undef REAL
#undef INTEGER
#if VECTOR == 16 /* double is for checks */
#define TYPE f64
#define VALUE double
#define REAL double
#define INTEGER int64_t
#define DOUBLE
#include "native.c"
#undef DOUBLE
#undef TYPE
#undef VALUE
#undef REAL
#undef INTEGER
#endif

#else /* one instruction set and type */

#define LANES ((int64_t)(VECTOR / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))
typedef REAL NAME(vector) __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));
typedef REAL NAME(half) __attribute__((vector_size(VECTOR / 2), aligned(sizeof(REAL)), may_alias));
typedef INTEGER NAME(integers) __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));
typedef int64_t NAME(addresses) __attribute__((vector_size(VECTOR), aligned(8), may_alias));
typedef INTEGER NAME(narrow) __attribute__((vector_size(VECTOR / 8 * sizeof(INTEGER)), aligned(sizeof(INTEGER)), may_alias));
#define V NAME(vector)
#define W NAME(half)
#define I NAME(integers)
#define A NAME(addresses)
#define N NAME(narrow)
#if defined(HALF)
typedef uint16_t NAME(raw) __attribute__((vector_size(VECTOR / 2), aligned(2), may_alias));
typedef uint32_t NAME(wide) __attribute__((vector_size(VECTOR)));
typedef uint16_t NAME(raw_half) __attribute__((vector_size(VECTOR / 4), aligned(2), may_alias));
typedef uint32_t NAME(wide_half) __attribute__((vector_size(VECTOR / 2)));

INLINE V NAME(load)(const VALUE *at) {
    return (V)(__builtin_convertvector(*(const NAME(raw) *)at, NAME(wide)) << 16);
}
INLINE W NAME(load_half)(const VALUE *at) {
    return (W)(__builtin_convertvector(*(const NAME(raw_half) *)at, NAME(wide_half)) << 16);
}
INLINE REAL NAME(load_one)(const VALUE *at) {
    uint32_t bits = (uint32_t)*at << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE VALUE NAME(rounded)(REAL value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (VALUE)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
INLINE V NAME(load)(const VALUE *at) { return *(const V *)at; }
INLINE W NAME(load_half)(const VALUE *at) { return *(const W *)at; }
INLINE REAL NAME(load_one)(const VALUE *at) { return *at; }
INLINE VALUE NAME(rounded)(REAL value) { return value; }
#endif

/* Where the samples of one block lie: per corner (z y x bits 4 2 1) the addresses of the rows of values and gradient
 * and the interpolation weight times the attention weight; the position within the voxel; the attention weight. */
typedef struct {
    int64_t row[8][BLOCK], grad[8][BLOCK];
    REAL scale[8][BLOCK];
    REAL fz[BLOCK], fy[BLOCK], fx[BLOCK], weight[BLOCK];
    REAL position[3][BLOCK];
    int64_t level, first, count;
} __attribute__((aligned(64))) NAME(block);

/* What all blocks of a part share. */
typedef struct {
    const REAL *locations, *weights; /* of the part's first query, its head */
    const VALUE *values;             /* of its batch and head */
    REAL *gradient;
    const int64_t *shapes;
    int64_t nothing, nowhere; /* a row of zeros, and one that takes what is added outside */
    int64_t points, samples, query_step, row_bytes, grad_bytes;
    int64_t level, last_level, start, next; /* cursor: level, its first voxel, next sample of it */
} NAME(stream);

/* Reads the next block of samples of the stream. `count` is 0 at its end. */
INLINE void NAME(locate_for)(NAME(stream) *restrict from, NAME(block) *restrict to, const int scatter) {
    const int64_t *shape;
    for (;;) {
        if (from->level >= from->last_level) {
            to->count = 0;
            return;
        }
        shape = from->shapes + 3 * from->level;
        if (from->next < from->samples) break;
        from->start += shape[0] * shape[1] * shape[2];
        from->level++;
        from->next = 0;
    }
    const int64_t count = smaller(BLOCK, from->samples - from->next), points = from->points;
    to->level = from->level;
    to->first = from->next;
    to->count = count;
    int64_t query = from->next / points, point = from->next % points;
    const REAL *location = from->locations + (query * from->query_step + from->level * points) * 3;
    const REAL *weight = from->weights + query * from->query_step + from->level * points;
    for (int64_t j = 0; j < count; j++) {
        to->position[0][j] = location[3 * point];
        to->position[1][j] = location[3 * point + 1];
        to->position[2][j] = location[3 * point + 2];
        to->weight[j] = weight[point];
        if (++point == points) {
            point = 0;
            location += 3 * from->query_step;
            weight += from->query_step;
        }
    }
    for (int64_t j = count; j < BLOCK; j++) to->position[0][j] = NOWHERE, to->weight[j] = 0;
    from->next += count;

    const INTEGER depth = (INTEGER)shape[0], height = (INTEGER)shape[1], width = (INTEGER)shape[2];
    const REAL d = (REAL)depth, h = (REAL)height, w = (REAL)width;
    INTEGER voxel[BLOCK] __attribute__((aligned(64))), inside[8][BLOCK] __attribute__((aligned(64)));
    for (int64_t j = 0; j < BLOCK; j += LANES) {
        V z = *(V *)(to->position[0] + j) * d - (REAL)0.5, y = *(V *)(to->position[1] + j) * h - (REAL)0.5;
        V x = *(V *)(to->position[2] + j) * w - (REAL)0.5;
        /* False for NaN too, and before any conversion to an integer. */
        I in = (I)(z > -1) & (I)(z < d) & (I)(y > -1) & (I)(y < h) & (I)(x > -1) & (I)(x < w);
        z = (V)((I)z & in), y = (V)((I)y & in), x = (V)((I)x & in);
        I iz = __builtin_convertvector(z, I), iy = __builtin_convertvector(y, I), ix = __builtin_convertvector(x, I);
        iz += (I)(z < __builtin_convertvector(iz, V)), iy += (I)(y < __builtin_convertvector(iy, V));
        ix += (I)(x < __builtin_convertvector(ix, V));
        const V fz = z - __builtin_convertvector(iz, V), fy = y - __builtin_convertvector(iy, V);
        const V fx = x - __builtin_convertvector(ix, V), gx = 1 - fx;
        const I z0 = in & (I)(iz >= 0), z1 = in & (I)(iz + 1 < depth), y0 = (I)(iy >= 0), y1 = (I)(iy + 1 < height);
        const I x0 = (I)(ix >= 0), x1 = (I)(ix + 1 < width);
        const V a = *(V *)(to->weight + j), a0 = a - a * fz, a1 = a * fz;
        const V a00 = a0 - a0 * fy, a01 = a0 * fy, a10 = a1 - a1 * fy, a11 = a1 * fy;
        const V scales[4] = {a00, a01, a10, a11};
        const I rows[4] = {z0 & y0, z0 & y1, z1 & y0, z1 & y1};
        *(V *)(to->fz + j) = fz, *(V *)(to->fy + j) = fy, *(V *)(to->fx + j) = fx;
        *(I *)(voxel + j) = (iz * height + iy) * width + ix;
        UNROLL
        for (int k = 0; k < 4; k++) {
            *(V *)(to->scale[2 * k] + j) = scales[k] * gx, *(V *)(to->scale[2 * k + 1] + j) = scales[k] * fx;
            *(I *)(inside[2 * k] + j) = rows[k] & x0, *(I *)(inside[2 * k + 1] + j) = rows[k] & x1;
        }
    }
    const int64_t base = (int64_t)from->values + from->start * from->row_bytes;
    const int64_t grad_base = (int64_t)from->gradient + from->start * from->grad_bytes;
    const int64_t row_bytes = from->row_bytes, grad_bytes = from->grad_bytes;
    const A nothing = (A){0} + from->nothing, nowhere = (A){0} + from->nowhere;
    for (int64_t j = 0; j < BLOCK; j += (int64_t)(VECTOR / 8)) {
        const A at = __builtin_convertvector(*(N *)(voxel + j), A);
        const A row = at * row_bytes + base, grad = at * grad_bytes + grad_base;
        UNROLL
        for (int k = 0; k < 8; k++) {
            const int64_t ahead = ((k >> 2 & 1) * height + (k >> 1 & 1)) * (int64_t)width + (k & 1);
            const A in = __builtin_convertvector(*(N *)(inside[k] + j), A);
            *(A *)(to->row[k] + j) = ((row + ahead * row_bytes) & in) | (nothing & ~in);
            if (scatter) *(A *)(to->grad[k] + j) = ((grad + ahead * grad_bytes) & in) | (nowhere & ~in);
        }
    }
}

static __attribute__((noinline)) void NAME(locate)(NAME(stream) *restrict from, NAME(block) *restrict to) {
    if (from->gradient) NAME(locate_for)(from, to, 1);
    else NAME(locate_for)(from, to, 0);
}

INLINE void NAME(prefetch)(const NAME(block) *next, int64_t j, int64_t bytes, const int scatter) {
    UNROLL
    for (int k = 0; k < 8; k++)
        for (int64_t at = 0; at < bytes; at += LINE) __builtin_prefetch((const char *)next->row[k][j] + at, 0);
    if (scatter)
        UNROLL
        for (int k = 0; k < 8; k++)
            for (int64_t at = 0; at < bytes * (int64_t)(sizeof(REAL) / sizeof(VALUE)); at += LINE)
                __builtin_prefetch((const char *)next->grad[k][j] + at, 1);
}

/* One sample: `sum` += its eight rows, scaled. */
INLINE void NAME(gather)(const NAME(block) *now, int64_t j, REAL *sum, const int64_t c) {
    const VALUE *row[8];
    REAL scale[8];
    int64_t i = 0;
    UNROLL
    for (int k = 0; k < 8; k++) row[k] = (const VALUE *)now->row[k][j], scale[k] = now->scale[k][j];
    for (; i + LANES <= c; i += LANES) {
        V even = NAME(load)(row[0] + i) * scale[0], odd = NAME(load)(row[1] + i) * scale[1];
        even += NAME(load)(row[2] + i) * scale[2], odd += NAME(load)(row[3] + i) * scale[3];
        even += NAME(load)(row[4] + i) * scale[4], odd += NAME(load)(row[5] + i) * scale[5];
        even += NAME(load)(row[6] + i) * scale[6], odd += NAME(load)(row[7] + i) * scale[7];
        *(V *)(sum + i) += even + odd;
    }
    for (; i + LANES / 2 <= c; i += LANES / 2) {
        W all = NAME(load_half)(row[0] + i) * scale[0];
        UNROLL
        for (int k = 1; k < 8; k++) all += NAME(load_half)(row[k] + i) * scale[k];
        *(W *)(sum + i) += all;
    }
    for (; i < c; i++)
        UNROLL
        for (int k = 0; k < 8; k++) sum[i] += NAME(load_one)(row[k] + i) * scale[k];
}

INLINE int NAME(forward_of)(const problem *of, int64_t index, const int64_t c) {
    const int64_t size = queries_per_part(of), chunks = (of->q + size - 1) / size, samples = of->l * of->p;
    const int64_t first = index % chunks * size, n = smaller(size, of->q - first);
    const int64_t head = index / chunks % of->h, batch = index / chunks / of->h;
    const int64_t lane = (batch * of->q + first) * of->h + head;
    REAL *memory = aligned_alloc(LINE, ((n + 1) * c * sizeof(REAL) + LINE) / LINE * LINE);
    if (!memory) return 1;
    REAL *sums = memory, *nothing = memory + n * c;
    memset(memory, 0, (n + 1) * c * sizeof(REAL));
    NAME(stream) from = {
        .locations = (const REAL *)of->locations + lane * samples * 3,
        .weights = (const REAL *)of->weights + lane * samples,
        .values = (const VALUE *)of->values + batch * of->stride_b + head * of->stride_h,
        .shapes = of->shapes, .nothing = (int64_t)nothing, .points = of->p, .samples = n * of->p,
        .query_step = of->h * samples, .row_bytes = of->stride_s * sizeof(VALUE), .last_level = of->l};
    NAME(block) blocks[2], *now = &blocks[0], *next = &blocks[1];
    const int64_t bytes = c * sizeof(VALUE), points = of->p;
    NAME(locate)(&from, now);
    while (now->count) {
        NAME(locate)(&from, next);
        int64_t query = now->first / points, point = now->first % points;
        REAL *sum = sums + query * c;
        for (int64_t j = 0; j < now->count; j++) {
            if (j < next->count) NAME(prefetch)(next, j, bytes, 0);
            NAME(gather)(now, j, sum, c);
            if (++point == points) point = 0, sum += c;
        }
        NAME(block) *done = now;
        now = next, next = done;
    }
    for (int64_t i = 0; i < n; i++) {
        VALUE *out = (VALUE *)of->output + (lane + i * of->h) * c;
        for (int64_t k = 0; k < c; k++) out[k] = NAME(rounded)(sums[i * c + k]);
    }
    free(memory);
    return 0;
}

/* Sums over the lanes of eight vectors. */
INLINE void NAME(fold)(const V *v, REAL *to) {
#if defined(__x86_64__) && !defined(DOUBLE) && VECTOR >= 32
    __m256 a[8];
    UNROLL
    for (int k = 0; k < 8; k++) {
#if VECTOR == 64
        a[k] = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[k]), _mm512_extractf32x8_ps((__m512)v[k], 1));
#else
        a[k] = (__m256)v[k];
#endif
    }
    __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)));
#else
    UNROLL
    for (int k = 0; k < 8; k++) {
        REAL sum = 0;
        for (int64_t i = 0; i < LANES; i++) sum += v[k][i];
        to[k] = sum;
    }
#endif
}

/* One sample backwards: products (8) of the output's gradient with the rows; the gradient, scaled, added to their own. */
INLINE void NAME(spread)(const NAME(block) *now, int64_t j, const REAL *g, REAL *products, const int64_t c,
                         const int scatter) {
    int64_t i = 0;
    V sums[8];
    REAL rest[8];
    const VALUE *row[8];
    UNROLL
    for (int k = 0; k < 8; k++) sums[k] = (V){0}, rest[k] = 0, row[k] = (const VALUE *)now->row[k][j];
    for (; i + LANES <= c; i += LANES) {
        const V part = *(const V *)(g + i);
        UNROLL
        for (int k = 0; k < 8; k++) sums[k] += NAME(load)(row[k] + i) * part;
    }
    NAME(fold)(sums, products);
    for (; i < c; i++)
        UNROLL
        for (int k = 0; k < 8; k++) rest[k] += NAME(load_one)(row[k] + i) * g[i];
    if (c % LANES)
        UNROLL
        for (int k = 0; k < 8; k++) products[k] += rest[k];
    if (!scatter) return;
    for (int k = 0; k < 8; k++) {
        REAL *grad = (REAL *)now->grad[k][j];
        const REAL scale = now->scale[k][j];
        for (i = 0; i + LANES <= c; i += LANES) *(V *)(grad + i) += *(const V *)(g + i) * scale;
        for (; i < c; i++) grad[i] += g[i] * scale;
    }
}

INLINE int NAME(backward_of)(const problem *of, int64_t index, const int64_t c, const int scatter) {
    const int split = by_level(of);
    const int64_t samples = of->l * of->p, points = of->p;
    /* Neighbours in time work on different heads: gradients of two levels share cache lines. */
    const int64_t head = index % of->h, batch = index / of->h % of->b, level = index / of->h / of->b;
    const int64_t lane = batch * of->q * of->h + head;
    REAL *nothing = aligned_alloc(LINE, (3 * c * sizeof(REAL) + LINE) / LINE * LINE);
    if (!nothing) return 1;
    REAL *nowhere = nothing + c, *row = nothing + 2 * c; /* `row`: the gradient, converted */
    memset(nothing, 0, 2 * c * sizeof(REAL));
    NAME(stream) from = {
        .locations = (const REAL *)of->locations + lane * samples * 3,
        .weights = (const REAL *)of->weights + lane * samples,
        .values = (const VALUE *)of->values + batch * of->stride_b + head * of->stride_h,
        .gradient = scatter ? (REAL *)of->grad_values + (batch * of->s * of->h + head) * c : NULL,
        .shapes = of->shapes, .nothing = (int64_t)nothing, .nowhere = (int64_t)nowhere, .points = points,
        .samples = of->q * points, .query_step = of->h * samples, .row_bytes = of->stride_s * sizeof(VALUE),
        .grad_bytes = of->h * c * sizeof(REAL), .level = split ? level : 0, .last_level = split ? level + 1 : of->l};
    for (int64_t i = 0; i < from.level; i++)
        from.start += of->shapes[3 * i] * of->shapes[3 * i + 1] * of->shapes[3 * i + 2];
    const VALUE *grads = (const VALUE *)of->grad_output + lane * c;
    REAL *to_locations = of->grad_locations, *to_weights = of->grad_weights;
    NAME(block) blocks[2], *now = &blocks[0], *next = &blocks[1];
    REAL products[BLOCK][8];
    NAME(locate)(&from, now);
    while (now->count) {
        NAME(locate)(&from, next);
        int64_t query = now->first / points, point = now->first % points;
        const int64_t *shape = of->shapes + 3 * now->level;
        const REAL d = (REAL)shape[0], h = (REAL)shape[1], w = (REAL)shape[2];
        const REAL *g = NULL;
        for (int64_t j = 0; j < now->count; j++) {
            if (j < next->count) NAME(prefetch)(next, j, c * sizeof(VALUE), scatter);
            if (!g) {
                const VALUE *grad = grads + query * of->h * c;
                __builtin_prefetch(grad + 4 * of->h * c);
                for (int64_t i = 0; i < c; i++) row[i] = NAME(load_one)(grad + i);
                g = row;
            }
            NAME(spread)(now, j, g, products[j], c, scatter);
            if (++point == points) point = 0, query++, g = NULL;
        }
        query = now->first / points, point = now->first % points;
        int64_t at = (lane + query * of->h) * samples + now->level * points;
        for (int64_t j = 0; j < now->count; j++) {
            const REAL *v = products[j], fz = now->fz[j], fy = now->fy[j], fx = now->fx[j], a = now->weight[j];
            REAL x00 = v[1] - v[0], x01 = v[3] - v[2], x10 = v[5] - v[4], x11 = v[7] - v[6];
            REAL v00 = v[0] + fx * x00, v01 = v[2] + fx * x01, v10 = v[4] + fx * x10, v11 = v[6] + fx * x11;
            REAL y0 = v01 - v00, y1 = v11 - v10, v0 = v00 + fy * y0, v1 = v10 + fy * y1;
            REAL x0 = x00 + fy * (x01 - x00), x1 = x10 + fy * (x11 - x10), z = v1 - v0;
            to_weights[at + point] = v0 + fz * z;
            to_locations[3 * (at + point)] = a * d * z;
            to_locations[3 * (at + point) + 1] = a * h * (y0 + fz * (y1 - y0));
            to_locations[3 * (at + point) + 2] = a * w * (x0 + fz * (x1 - x0));
            if (++point == points) point = 0, at += of->h * samples;
        }
        NAME(block) *done = now;
        now = next, next = done;
    }
    free(nothing);
    return 0;
}

/* The usual head widths get loops of known length. */
#if defined(DOUBLE) || (defined(__x86_64__) && VECTOR == 16)
#define EACH(pass, ...) (void)0;
#elif defined(HALF)
#define EACH(pass, ...) \
    if (of->c == 16) return NAME(pass)(of, index, 16 __VA_ARGS__); \
    if (of->c == 32) return NAME(pass)(of, index, 32 __VA_ARGS__);
#elif VECTOR == 64
#define EACH(pass, ...) \
    if (of->c == 16) return NAME(pass)(of, index, 16 __VA_ARGS__); \
    if (of->c == 32) return NAME(pass)(of, index, 32 __VA_ARGS__); \
    if (of->c == 64) return NAME(pass)(of, index, 64 __VA_ARGS__);
#else
#define EACH(pass, ...) \
    if (of->c == 16) return NAME(pass)(of, index, 16 __VA_ARGS__); \
    if (of->c == 24) return NAME(pass)(of, index, 24 __VA_ARGS__); \
    if (of->c == 32) return NAME(pass)(of, index, 32 __VA_ARGS__); \
    if (of->c == 64) return NAME(pass)(of, index, 64 __VA_ARGS__);
#endif

static int NAME(forward)(const problem *of, int64_t index) {
    EACH(forward_of)
    return NAME(forward_of)(of, index, of->c);
}

static int NAME(backward)(const problem *of, int64_t index) {
    if (!of->grad_values) return NAME(backward_of)(of, index, of->c, 0);
    EACH(backward_of, , 1)
    return NAME(backward_of)(of, index, of->c, 1);
}

#undef EACH
#undef V
#undef W
#undef I
#undef A
#undef N
#undef LANES
#undef INLINE
#endif

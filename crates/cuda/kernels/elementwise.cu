// What stands between the products of a layer: norms, activations, sums, conversions, embeddings, the cache's newest rows,
// and what is asked of logits. Each reads and writes its data once, four numbers at a time where addresses and lengths allow
// it; sums go over a tree that depends on lengths alone.
//
// Grids: kernels over rows have a block (or a warp) a row, the others go over their data in strides of the grid.

#define THREADS 256

struct alignas(16) Four {
    float x[4];
};
#if ELEMENT == 2
typedef Four FourElements;
#else
struct alignas(8) FourElements {
    element x[4];
};
#endif

__device__ __forceinline__ Four load_four(const float *at) { return *(const Four *)at; }
__device__ __forceinline__ void store_four(float *at, Four x) { *(Four *)at = x; }

__device__ __forceinline__ FourElements to_elements(Four x) {
    FourElements y;
    for (int i = 0; i < 4; i++) y.x[i] = from_float(x.x[i]);
    return y;
}

// Rows of n numbers that start at these addresses can be read four at a time.
__device__ __forceinline__ bool in_fours(const void *a, const void *b, const void *c, long long n) {
    return (((u64)a | (u64)b | (u64)c) & 15) == 0 && n % 4 == 0;
}

// The grid's threads, numbered: number and count.
__device__ __forceinline__ long long thread_number() { return (long long)blockIdx.x * THREADS + threadIdx.x; }
__device__ __forceinline__ long long thread_count() { return (long long)gridDim.x * THREADS; }

#ifdef HEAD_DIM
// ---- the cache; with HEAD_DIM this kernel stands alone ----

// Keys and values of tokens first, first + 1, ... into their pages. Tokens stand `stride` numbers apart, heads one after the
// other; each thread takes four numbers of a key and of its value.
extern "C" __global__ void __launch_bounds__(THREADS) append(const float *keys, const float *values, const PageEntry *pages, int first,
                                                            int tokens, int n_kv_heads, int stride) {
    const int per_head = HEAD_DIM / 4;
    long long per_token = (long long)n_kv_heads * per_head;
    for (long long i = thread_number(); i < tokens * per_token; i += thread_count()) {
        int token = (int)(i / per_token), rest = (int)(i % per_token);
        int head = rest / per_head, at = rest % per_head * 4;
        long long from = (long long)token * stride + head * HEAD_DIM + at;
        *(FourElements *)(key_row(pages, head, first + token) + at) = to_elements(load_four(keys + from));
        *(FourElements *)(value_row(pages, head, first + token) + at) = to_elements(load_four(values + from));
    }
}

#else
// ---- sums and maxima over a block; `parts` holds one number a warp and may be used again at once ----

__device__ __forceinline__ float block_sum(float x, float *parts) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < THREADS / WARP; w++) sum += parts[w];
    __syncthreads();
    return sum;
}

__device__ __forceinline__ float block_max(float x, float *parts) {
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float most = parts[0];
    for (int w = 1; w < THREADS / WARP; w++) most = fmaxf(most, parts[w]);
    __syncthreads();
    return most;
}

__device__ __forceinline__ double block_sum_double(double x, double *parts) {
    for (int d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(FULL, x, d);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    double sum = 0;
    for (int w = 0; w < THREADS / WARP; w++) sum += parts[w];
    __syncthreads();
    return sum;
}

// ---- norms: y = x / sqrt(mean(x²) + eps) · weight; y may be x ----

__device__ __forceinline__ float square_sum(const float *x, int n, bool fours, int first, int step) {
    float sum = 0;
    if (fours) {
        for (int i = 4 * first; i < n; i += 4 * step) {
            Four four = load_four(x + i);
            for (int j = 0; j < 4; j++) sum += four.x[j] * four.x[j];
        }
    } else {
        for (int i = first; i < n; i += step) sum += x[i] * x[i];
    }
    return sum;
}

__device__ __forceinline__ void scale_row(const float *x, const float *weight, float *y, int n, float factor, bool fours,
                                          int first, int step) {
    if (fours) {
        for (int i = 4 * first; i < n; i += 4 * step) {
            Four four = load_four(x + i), by = load_four(weight + i);
            for (int j = 0; j < 4; j++) four.x[j] = four.x[j] * factor * by.x[j];
            store_four(y + i, four);
        }
    } else {
        for (int i = first; i < n; i += step) y[i] = x[i] * factor * weight[i];
    }
}

// A block a row.
extern "C" __global__ void __launch_bounds__(THREADS) rms_norm(const float *x, const float *weight, float *y, int n, float eps) {
    __shared__ float parts[THREADS / WARP];
    x += (long long)blockIdx.x * n;
    y += (long long)blockIdx.x * n;
    bool fours = in_fours(x, weight, y, n);
    float sum = block_sum(square_sum(x, n, fours, threadIdx.x, THREADS), parts);
    scale_row(x, weight, y, n, 1.0f / sqrtf(sum / n + eps), fours, threadIdx.x, THREADS);
}

// A warp a row, for many short ones: the norm of each head's query and key.
extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_short(const float *x, const float *weight, float *y, int n, float eps,
                                                                    int rows) {
    int row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return; // the whole warp
    x += (long long)row * n;
    y += (long long)row * n;
    bool fours = in_fours(x, weight, y, n);
    float sum = warp_sum(square_sum(x, n, fours, lane, WARP));
    scale_row(x, weight, y, n, 1.0f / sqrtf(sum / n + eps), fours, lane, WARP);
}

// ---- number by number ----

__device__ __forceinline__ float silu_times(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// gate = silu(gate) · up
extern "C" __global__ void __launch_bounds__(THREADS) silu_mul(float *gate, const float *up, long long n) {
    long long fours = in_fours(gate, up, up, 0) ? n / 4 : 0;
    for (long long i = thread_number(); i < fours; i += thread_count()) {
        Four g = load_four(gate + 4 * i), u = load_four(up + 4 * i);
        for (int j = 0; j < 4; j++) g.x[j] = silu_times(g.x[j], u.x[j]);
        store_four(gate + 4 * i, g);
    }
    for (long long i = 4 * fours + thread_number(); i < n; i += thread_count()) gate[i] = silu_times(gate[i], up[i]);
}

// y += x
extern "C" __global__ void __launch_bounds__(THREADS) add(float *y, const float *x, long long n) {
    long long fours = in_fours(y, x, x, 0) ? n / 4 : 0;
    for (long long i = thread_number(); i < fours; i += thread_count()) {
        Four a = load_four(y + 4 * i), b = load_four(x + 4 * i);
        for (int j = 0; j < 4; j++) a.x[j] += b.x[j];
        store_four(y + 4 * i, a);
    }
    for (long long i = 4 * fours + thread_number(); i < n; i += thread_count()) y[i] += x[i];
}

// Each row of y += bias; a block a row.
extern "C" __global__ void __launch_bounds__(THREADS) add_bias(float *y, const float *bias, int n) {
    y += (long long)blockIdx.x * n;
    if (in_fours(y, bias, bias, n)) {
        for (int i = 4 * threadIdx.x; i < n; i += 4 * THREADS) {
            Four a = load_four(y + i), b = load_four(bias + i);
            for (int j = 0; j < 4; j++) a.x[j] += b.x[j];
            store_four(y + i, a);
        }
    } else {
        for (int i = threadIdx.x; i < n; i += THREADS) y[i] += bias[i];
    }
}

// Row i of x is multiplied with factors[i]; a block a row.
extern "C" __global__ void __launch_bounds__(THREADS) scale_rows(float *x, const float *factors, int n) {
    x += (long long)blockIdx.x * n;
    float factor = factors[blockIdx.x];
    for (int i = threadIdx.x; i < n; i += THREADS) x[i] *= factor;
}

// ---- between types ----

extern "C" __global__ void __launch_bounds__(THREADS) to_element(const float *x, element *y, long long n) {
    long long fours = in_fours(x, y, y, 0) ? n / 4 : 0;
    for (long long i = thread_number(); i < fours; i += thread_count())
        *(FourElements *)(y + 4 * i) = to_elements(load_four(x + 4 * i));
    for (long long i = 4 * fours + thread_number(); i < n; i += thread_count()) y[i] = from_float(x[i]);
}

// Rows of a table of `element`, by their numbers; a block a row.
extern "C" __global__ void __launch_bounds__(THREADS) embed(const element *table, const u32 *ids, float *y, int n) {
    const element *row = table + (long long)ids[blockIdx.x] * n;
    y += (long long)blockIdx.x * n;
    if (in_fours(table, y, y, n)) {
        for (int i = 4 * threadIdx.x; i < n; i += 4 * THREADS) {
            FourElements from = *(const FourElements *)(row + i);
            Four to;
            for (int j = 0; j < 4; j++) to.x[j] = to_float(from.x[j]);
            store_four(y + i, to);
        }
    } else {
        for (int i = threadIdx.x; i < n; i += THREADS) y[i] = to_float(row[i]);
    }
}

// Rows of x, by their numbers; a block a row.
extern "C" __global__ void __launch_bounds__(THREADS) gather_rows(const float *x, const u32 *ids, float *y, int n) {
    const float *row = x + (long long)ids[blockIdx.x] * n;
    y += (long long)blockIdx.x * n;
    if (in_fours(x, y, y, n)) {
        for (int i = 4 * threadIdx.x; i < n; i += 4 * THREADS) store_four(y + i, load_four(row + i));
    } else {
        for (int i = threadIdx.x; i < n; i += THREADS) y[i] = row[i];
    }
}

// ---- logits; a block a row ----

struct Best {
    float value;
    int index;
};

// What is no number beats every number.
__device__ __forceinline__ Best best_of(Best a, float value, int index) {
    if (value != value) return {-MINUS_INFINITY, -1};
    bool better = value > a.value || (value == a.value && index < a.index);
    return better ? Best{value, index} : a;
}

// The index of the largest number, the lower one where they tie; NONE if one of them is no number.
extern "C" __global__ void __launch_bounds__(THREADS) argmax(const float *x, u32 *y, int n) {
    __shared__ Best parts[THREADS / WARP];
    x += (long long)blockIdx.x * n;
    Best best = {MINUS_INFINITY, 0x7fffffff};
    if (in_fours(x, x, x, n)) {
        for (int i = 4 * threadIdx.x; i < n; i += 4 * THREADS) {
            Four four = load_four(x + i);
            for (int j = 0; j < 4; j++) best = best_of(best, four.x[j], i + j);
        }
    } else {
        for (int i = threadIdx.x; i < n; i += THREADS) best = best_of(best, x[i], i);
    }
    for (int d = WARP / 2; d > 0; d /= 2) {
        float value = __shfl_xor_sync(FULL, best.value, d);
        int index = __shfl_xor_sync(FULL, best.index, d);
        best = best_of(best, value, index);
    }
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < THREADS / WARP; w++) best = best_of(best, parts[w].value, parts[w].index);
        y[blockIdx.x] = (u32)best.index;
    }
}

// The loss of each row's target: log(sum(exp(x))) - x[target]. Sums are in double, since a vocabulary has many small terms.
extern "C" __global__ void __launch_bounds__(THREADS) losses(const float *x, const u32 *targets, float *y, int n) {
    __shared__ float parts[THREADS / WARP];
    __shared__ double sums[THREADS / WARP];
    x += (long long)blockIdx.x * n;
    float most = MINUS_INFINITY;
    for (int i = threadIdx.x; i < n; i += THREADS) most = fmaxf(most, x[i]);
    most = block_max(most, parts);
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += expf(x[i] - most);
    sum = block_sum_double(sum, sums);
    if (threadIdx.x == 0) y[blockIdx.x] = (float)(log(sum) + (double)most - (double)x[targets[blockIdx.x]]);
}
#endif

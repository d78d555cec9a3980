// Segments of cached keys: which keys there are, who sees them, where both stand, and how they are turned there.
//
// Stands between common.cuh and the families that attend. The structs are filled in by src/segments.rs, which says what their
// fields mean; the rules are those of `Segment`, `Band`, `Position` and `RopeTable` of the crate reattention-kernels.

#define HALF (HEAD_DIM / 2)
// A row is worked on in units of eight pairs: elements 8 u to 8 u + 7 of either half.
#define UNITS (HEAD_DIM / 16)
// The token of a place that holds no key: above all others.
#define NO_TOKEN 0x7fffffff
// Positions from one row of the coarse table to the next.
#define FINE 256

struct Rope {
    const float *coarse;
    const float *fine;
    const float *inv_freq;
    long long positions;
    float multiplier;
    int unused;
};

struct Map {
    long long a;
    long long b;
    long long c;
    int kind;
    int unused;
};

struct Segment {
    const u32 *tokens;
    const u32 *count;
    const u32 *key_shift;
    const u32 *query_shift;
    long long first;
    long long len;
    long long band_min;
    long long band_max;
    long long band_unit;
    Map key_position;
    Map query_position;
    Rope key_rope;
    Rope query_rope;
};

// ---- keys ----

// Keys of a segment, also where only the device knows how many.
__device__ __forceinline__ int keys_of(const Segment &segment) {
    int len = (int)segment.len;
    if (segment.count == 0) return len;
    u32 count = *segment.count;
    return count < (u32)len ? (int)count : len;
}

__device__ __forceinline__ int token_of(const Segment &segment, int rank) {
    return segment.tokens == 0 ? (int)segment.first + rank : (int)segment.tokens[rank];
}

// How many of the first `len` of ascending tokens are below `limit`. A call of the whole warp.
__device__ __forceinline__ int count_below(const u32 *tokens, int len, int limit) {
    int lane = threadIdx.x % WARP;
    int low = 0, high = len;
    // The answer is at least `low` and at most `high`.
    while (low < high) {
        int step = (high - low + WARP - 1) / WARP;
        // Lane i looks at the last of the i-th stretch of `step` tokens.
        int at = low + (lane + 1) * step - 1;
        bool below = at < high && (int)tokens[at] < limit;
        int stretches = __popc(__ballot_sync(FULL, below));
        low += stretches * step;
        if (step == 1) break;
        int end = low + step - 1;
        if (end < high) high = end;
    }
    return low;
}

// ---- who sees what ----

// Token indices that the query of token index `query` sees: `first` to `end` - 1.
struct Seen {
    int first;
    int end;
};

__device__ __forceinline__ Seen seen_by(const Segment &segment, int query) {
    int unit = (int)segment.band_unit;
    long long places = (unit == 1 ? query : query / unit) + 1;
    long long first = places > segment.band_max ? (places - segment.band_max) * unit : 0;
    long long end = places > segment.band_min ? (places - segment.band_min) * unit : 0;
    if (end > query + 1) end = query + 1;
    Seen seen;
    seen.first = first < NO_TOKEN ? (int)first : NO_TOKEN;
    seen.end = end < first ? seen.first : (int)end;
    return seen;
}

// Ranks of the keys that some query from `first_query` to `last_query` sees: `first` to `end` - 1. Both ends of what a
// query sees move forward with it, and leave no gap unless they see nothing at all. A call of the whole warp.
__device__ __forceinline__ Seen seen_ranks(const Segment &segment, int first_query, int last_query) {
    int len = keys_of(segment);
    int first = seen_by(segment, first_query).first, end = seen_by(segment, last_query).end;
    Seen ranks;
    if (segment.band_max <= segment.band_min || first >= end || len == 0) {
        ranks.first = ranks.end = 0;
        return ranks;
    }
    if (segment.tokens == 0) {
        long long from = first - segment.first, to = end - segment.first;
        ranks.first = from < 0 ? 0 : from < len ? (int)from : len;
        ranks.end = to < 0 ? 0 : to < len ? (int)to : len;
        return ranks;
    }
    // Most lists are seen whole, or from their start.
    ranks.first = (int)segment.tokens[0] >= first ? 0 : count_below(segment.tokens, len, first);
    ranks.end = (int)segment.tokens[len - 1] < end ? len : count_below(segment.tokens, len, end);
    return ranks;
}

// ---- positions ----

#define MAP_INDEX 0
#define MAP_CAPPED 1
#define MAP_RANK 2
#define MAP_CONSTANT 3
#define MAP_GROUPED 4
#define MAP_MODULO 5
#define MAP_STAIR 6

__device__ __forceinline__ long long position_at(const Map &map, const u32 *shift, int index, int rank) {
    long long p;
    switch (map.kind) {
    case MAP_INDEX: p = index + map.a; break;
    case MAP_CAPPED: p = index < map.a ? index : map.a; break;
    case MAP_RANK: p = rank + map.a; break;
    case MAP_CONSTANT: p = map.a; break;
    case MAP_GROUPED: p = (u32)index / (u32)map.a + map.b; break;
    case MAP_MODULO:
        p = (u32)index % (u32)map.a + map.b;
        if (p > map.c) p = map.c;
        break;
    default: p = index >= map.a ? index : map.a - 1 - (map.a - 1 - index) / map.b;
    }
    return shift == 0 ? p : p + *shift;
}

__device__ __forceinline__ bool is_same_map(const Map &x, const Map &y) {
    return x.kind == y.kind && x.a == y.a && x.b == y.b && x.c == y.c;
}

// ---- rotation ----

// Eight floats, loaded and stored 16 bytes at a time.
struct alignas(16) Floats4 {
    float x[4];
};
__device__ __forceinline__ void load_floats(float x[8], const float *from) {
    Floats4 low = *(const Floats4 *)from, high = *(const Floats4 *)(from + 4);
    for (int i = 0; i < 4; i++) x[i] = low.x[i], x[4 + i] = high.x[i];
}
__device__ __forceinline__ void store_floats(float *to, const float x[8]) {
    Floats4 low, high;
    for (int i = 0; i < 4; i++) low.x[i] = x[i], high.x[i] = x[4 + i];
    *(Floats4 *)to = low;
    *(Floats4 *)(to + 4) = high;
}

// Eight elements likewise.
#if PARTS == 1
struct alignas(16) Elements8 {
    u32 pair[4];
};
__device__ __forceinline__ void load_elements(float x[8], const element *from) {
    Elements8 all = *(const Elements8 *)from;
    for (int i = 0; i < 4; i++) x[2 * i] = to_float((element)all.pair[i]), x[2 * i + 1] = to_float((element)(all.pair[i] >> 16));
}
__device__ __forceinline__ void store_elements(element *to, const float x[8]) {
    Elements8 all;
    for (int i = 0; i < 4; i++) all.pair[i] = pack_floats(x[2 * i], x[2 * i + 1]);
    *(Elements8 *)to = all;
}
#else
__device__ __forceinline__ void load_elements(float x[8], const element *from) { load_floats(x, from); }
__device__ __forceinline__ void store_elements(element *to, const float x[8]) { store_floats(to, x); }
#endif

// Cosines and sines of a position that the tables do not hold. Apart, so that the registers that this takes are not taken from
// the usual case.
__device__ __attribute__((noinline)) void far_angles(const float *inv_freq, long long position, float multiplier, float *cosines, float *sines) {
    for (int i = 0; i < 8; i++) {
        double sine, cosine;
        sincos((double)position * (double)inv_freq[i], &sine, &cosine);
        cosines[i] = (float)cosine * multiplier;
        sines[i] = (float)sine * multiplier;
    }
}

// Turns the pairs (low[i], high[i]), numbers 8 `unit` to 8 `unit` + 7 of a row, to `position`.
__device__ __forceinline__ void rotate(const Rope &rope, long long position, int unit, float low[8], float high[8]) {
    float cosines[8], sines[8];
    if ((u64)position < (u64)rope.positions) {
        // The sum of two angles: of a multiple of FINE positions, which has the multiplier, and of the rest.
        u32 p = (u32)position;
        const float *coarse = rope.coarse + p / FINE * HEAD_DIM + unit * 8;
        const float *fine = rope.fine + p % FINE * HEAD_DIM + unit * 8;
        float a_cos[8], a_sin[8], b_cos[8], b_sin[8];
        load_floats(a_cos, coarse);
        load_floats(a_sin, coarse + HALF);
        load_floats(b_cos, fine);
        load_floats(b_sin, fine + HALF);
        for (int i = 0; i < 8; i++) {
            cosines[i] = a_cos[i] * b_cos[i] - a_sin[i] * b_sin[i];
            sines[i] = a_sin[i] * b_cos[i] + a_cos[i] * b_sin[i];
        }
    } else {
        float far_cos[8], far_sin[8];
        far_angles(rope.inv_freq + unit * 8, position, rope.multiplier, far_cos, far_sin);
        for (int i = 0; i < 8; i++) cosines[i] = far_cos[i], sines[i] = far_sin[i];
    }
    for (int i = 0; i < 8; i++) {
        float x = low[i], y = high[i];
        low[i] = x * cosines[i] - y * sines[i];
        high[i] = y * cosines[i] + x * sines[i];
    }
}

// ---- queries ----

// Query rows of one KV head that a block works on: tokens of the step times heads of the group, tokens outermost.
struct Rows {
    // `[q_len, n_heads, HEAD_DIM]`, not rotated.
    const float *q;
    int n_heads;
    int group;
    // Token index of the step's first query.
    int first;
    int kv_head;
    // The first row, and how many.
    int from;
    int count;
};

// Which token of the step a row is of.
__device__ __forceinline__ int step_token(const Rows &rows, int row) { return (rows.from + row) / rows.group; }

// Where a row stands in `[q_len, n_heads]`.
__device__ __forceinline__ long long place_of_row(const Rows &rows, int row) {
    int token = step_token(rows, row);
    return (long long)token * rows.n_heads + rows.kv_head * rows.group + (rows.from + row - token * rows.group);
}

// Pairs 8 `unit` to 8 `unit` + 7 of a row, turned to where it stands towards a segment.
__device__ __forceinline__ void load_query(const Rows &rows, const Segment &segment, int row, int unit, float low[8], float high[8]) {
    int token = step_token(rows, row);
    const float *from = rows.q + place_of_row(rows, row) * HEAD_DIM + unit * 8;
    load_floats(low, from);
    load_floats(high, from + HALF);
    long long position = position_at(segment.query_position, segment.query_shift, rows.first + token, token);
    rotate(segment.query_rope, position, unit, low, high);
}

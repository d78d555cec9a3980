// The attention that each key of some segments gets, added up.
//
// A block has MASS_KEYS keys, one a lane, turned to their positions in shared memory, and goes over the query rows of a KV head in
// pieces of MASS_ROWS. Sums are taken in the order of tokens (or heads), so they are the same in every run.

#define MASS_KEYS WARP
#define MASS_WARPS 8
#define MASS_THREADS (MASS_WARPS * WARP)
// Two rows a warp.
#define MASS_ROWS (2 * MASS_WARPS)
// Odd, so that the lanes of a warp read from different banks.
#define KEY_STRIDE (HEAD_DIM + 1)

// Dynamic shared memory.
struct Memory {
    float *queries;
    float *keys;
    // `[MASS_ROWS, MASS_KEYS]`
    float *weights;
    // `[group, MASS_KEYS]`
    float *mass;
};

__device__ __forceinline__ Memory memory_at(unsigned char *start) {
    Memory memory;
    memory.queries = (float *)start;
    memory.keys = memory.queries + MASS_ROWS * HEAD_DIM;
    memory.weights = memory.keys + MASS_KEYS * KEY_STRIDE;
    memory.mass = memory.weights + MASS_ROWS * MASS_KEYS;
    return memory;
}

// Which keys a block has: ranks `first` to `first + count` - 1 of a segment.
struct Keys {
    const Segment *segment;
    int first;
    int count;
    // Keys of the list before them.
    int before;
};

// The keys of tile `tile` of a list, whose segments start a tile each; none where there is no such tile.
__device__ __forceinline__ Keys keys_of_tile(const Segment *segments, int n_segments, int tile) {
    Keys keys;
    keys.segment = segments;
    keys.first = keys.count = keys.before = 0;
    for (int i = 0; i < n_segments; i++) {
        int len = keys_of(segments[i]), tiles = (len + MASS_KEYS - 1) / MASS_KEYS;
        if (tile < tiles) {
            keys.segment = segments + i;
            keys.first = tile * MASS_KEYS;
            keys.count = len - keys.first < MASS_KEYS ? len - keys.first : MASS_KEYS;
            keys.before += keys.first;
            return keys;
        }
        tile -= tiles;
        keys.before += len;
    }
    return keys;
}

// Turns the keys to their positions; those that no row sees are not read.
__device__ __forceinline__ void stage_keys(const Memory &memory, const Keys &keys, const PageEntry *pages, int kv_head, const Seen &by_any) {
    const Segment &segment = *keys.segment;
    for (int i = threadIdx.x; i < keys.count * UNITS; i += MASS_THREADS) {
        int place = i / UNITS, unit = i % UNITS, rank = keys.first + place, token = token_of(segment, rank);
        if (token < by_any.first || token >= by_any.end) continue;
        const element *key = key_row(pages, kv_head, token) + unit * 8;
        float low[8], high[8];
        load_elements(low, key);
        load_elements(high, key + HALF);
        rotate(segment.key_rope, position_at(segment.key_position, segment.key_shift, token, rank), unit, low, high);
        float *to = memory.keys + place * KEY_STRIDE + unit * 8;
        for (int e = 0; e < 8; e++) to[e] = low[e], to[HALF + e] = high[e];
    }
}

__device__ __forceinline__ void stage_rows(const Memory &memory, const Rows &rows, const Segment &segment) {
    for (int i = threadIdx.x; i < rows.count * UNITS; i += MASS_THREADS) {
        int row = i / UNITS, unit = i % UNITS;
        float low[8], high[8];
        load_query(rows, segment, row, unit, low, high);
        float *to = memory.queries + row * HEAD_DIM + unit * 8;
        store_floats(to, low);
        store_floats(to + HALF, high);
    }
}

// The weights of the staged rows for the staged keys, zero where a key is not seen.
__device__ __forceinline__ void weigh(const Memory &memory, const Rows &rows, const Keys &keys, float scale, const float *lse) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const Segment &segment = *keys.segment;
    int token = lane < keys.count ? token_of(segment, keys.first + lane) : NO_TOKEN;
    const float *key = memory.keys + lane * KEY_STRIDE;
    const float *query = memory.queries + warp * HEAD_DIM, *other = query + MASS_WARPS * HEAD_DIM;
    float dots[2] = {0, 0};
    if (token != NO_TOKEN) {
        for (int d = 0; d < HEAD_DIM; d++) {
            dots[0] += query[d] * key[d];
            dots[1] += other[d] * key[d];
        }
    }
    for (int i = 0; i < 2; i++) {
        int row = warp + i * MASS_WARPS;
        if (row >= rows.count) break;
        Seen seen = seen_by(segment, rows.first + step_token(rows, row));
        bool is_seen = token >= seen.first && token < seen.end;
        memory.weights[row * MASS_KEYS + lane] = is_seen ? expf(scale * dots[i] - lse[place_of_row(rows, row)]) : 0;
    }
}

// What any query from `first` to `last` sees.
__device__ __forceinline__ Seen seen_by_any(const Segment &segment, int first, int last) {
    Seen seen;
    seen.first = seen_by(segment, first).first;
    seen.end = segment.band_max > segment.band_min ? seen_by(segment, last).end : seen.first;
    return seen;
}

// `mass[head * stride + i]` becomes what key i of the head's list gets from all queries of the step. Grid: tiles of the longest
// list, KV heads. `lse` is `[q_len, n_heads]`; the other arguments are those of attend.
extern "C" __global__ void key_mass(
    const float *q, const PageEntry *pages, const Segment *all_segments, const int *starts, int lists, int q_len, int n_heads, int group, int first,
    float scale, const float *lse, float *mass, long long stride
) {
    DYNAMIC_SHARED(shared);
    Memory memory = memory_at(shared);
    int kv_head = blockIdx.y, list = lists == 1 ? 0 : kv_head;
    Keys keys = keys_of_tile(all_segments + starts[list], starts[list + 1] - starts[list], blockIdx.x);
    if (keys.count == 0) return;
    const Segment &segment = *keys.segment;
    stage_keys(memory, keys, pages, kv_head, seen_by_any(segment, first, first + q_len - 1));
    for (int i = threadIdx.x; i < group * MASS_KEYS; i += MASS_THREADS) memory.mass[i] = 0;
    int first_token = token_of(segment, keys.first), last_token = token_of(segment, keys.first + keys.count - 1);
    Rows rows;
    rows.q = q, rows.n_heads = n_heads, rows.group = group, rows.first = first, rows.kv_head = kv_head;
    for (rows.from = 0; rows.from < q_len * group; rows.from += MASS_ROWS) {
        rows.count = q_len * group - rows.from < MASS_ROWS ? q_len * group - rows.from : MASS_ROWS;
        Seen by_any = seen_by_any(segment, first + step_token(rows, 0), first + step_token(rows, rows.count - 1));
        if (last_token < by_any.first || first_token >= by_any.end) continue;
        stage_rows(memory, rows, segment);
        __syncthreads();
        weigh(memory, rows, keys, scale, lse);
        __syncthreads();
        for (int i = threadIdx.x; i < group * MASS_KEYS; i += MASS_THREADS) {
            int head = i / MASS_KEYS, place = i % MASS_KEYS;
            // Rows of the head: each `group`th, the first being that which brings `from` to a multiple.
            int row = (head + group - rows.from % group) % group;
            float sum = memory.mass[i];
            for (; row < rows.count; row += group) sum += memory.weights[row * MASS_KEYS + place];
            memory.mass[i] = sum;
        }
    }
    // Each thread takes what it added up itself.
    for (int i = threadIdx.x; i < group * MASS_KEYS; i += MASS_THREADS) {
        int head = i / MASS_KEYS, place = i % MASS_KEYS;
        if (place < keys.count) mass[(kv_head * group + head) * stride + keys.before + place] = memory.mass[i];
    }
}

// Adds to `mass[t]`, for each key t of a list that all KV heads share, what it gets from all heads of one query. Grid: tiles, as
// many as there can be.
extern "C" __global__ void add_mass_of_tokens(
    const float *q, const PageEntry *pages, const Segment *segments, const int *starts, int n_kv_heads, int n_heads, int group, int first,
    float scale, const float *lse, float *mass
) {
    DYNAMIC_SHARED(shared);
    Memory memory = memory_at(shared);
    Keys keys = keys_of_tile(segments, starts[1], blockIdx.x);
    if (keys.count == 0) return;
    const Segment &segment = *keys.segment;
    Seen seen = seen_by_any(segment, first, first);
    Rows rows;
    rows.q = q, rows.n_heads = n_heads, rows.group = group, rows.first = first;
    float sum = 0;
    for (rows.kv_head = 0; rows.kv_head < n_kv_heads; rows.kv_head++) {
        stage_keys(memory, keys, pages, rows.kv_head, seen);
        for (rows.from = 0; rows.from < group; rows.from += MASS_ROWS) {
            rows.count = group - rows.from < MASS_ROWS ? group - rows.from : MASS_ROWS;
            stage_rows(memory, rows, segment);
            __syncthreads();
            weigh(memory, rows, keys, scale, lse);
            __syncthreads();
            if (threadIdx.x < MASS_KEYS) {
                for (int row = 0; row < rows.count; row++) sum += memory.weights[row * MASS_KEYS + threadIdx.x];
            }
        }
    }
    if ((int)threadIdx.x < keys.count) mass[token_of(segment, keys.first + threadIdx.x)] += sum;
}

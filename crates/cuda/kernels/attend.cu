// Softmax attention over segments of cached keys, in one pass over them.
//
// A block has ROWS query rows of one KV head (a row is a token and a head of the group, so that a key is read once for the
// group) and one of several shares of the keys that any of its rows sees. Keys and values stream through STAGES stages of
// shared memory, KEYS at a time; keys are turned to their positions where they lie. A thread copies and turns the same
// elements, so it need not wait for others in between. Macros:
//   ROWS, KEYS  rows of a block and keys of a tile
//   WARPS       warps of a block
//   ROW_TILES   rows of a warp, in sixteens; warps that are not needed for ROWS rows share out the keys of a tile
//   STAGES      tiles in shared memory, at least 2

#define THREADS (WARPS * WARP)
#define WARP_ROWS (16 * ROW_TILES)
#define ROW_WARPS (ROWS / WARP_ROWS)
#define KEY_WARPS (WARPS / ROW_WARPS)
#define WARP_KEYS (KEYS / KEY_WARPS)
// Keys that a warp takes at once: more would not leave registers enough.
#define PIECE (WARP_KEYS < 32 ? WARP_KEYS : 32)
// One chunk of 16 bytes more than a row has: rows that lie below one another are then in different banks.
#define STRIDE (HEAD_DIM + 16 / (int)sizeof(element))
#define TILE (KEYS * STRIDE)
// Places for tokens and positions of tiles: those under way, and that which some warps are still at.
#define SLOTS (STAGES + 1)
#define MERGED_STRIDE (HEAD_DIM + 8)
#define LOG2_E 1.44269504088896341f
#define LN_2 0.69314718055994531f

static_assert(ROWS <= THREADS && KEYS <= THREADS, "a thread for each row and each key of a tile");
static_assert(ROW_WARPS * WARP_ROWS == ROWS && WARP_KEYS % 16 == 0 && WARP_KEYS % PIECE == 0, "warps share out a tile");

// A block's share of one segment.
struct Share {
    // Ranks of the keys that some row sees.
    int first;
    int end;
    // The first tile, counted over all segments.
    int first_tile;
};

// What a thread knows of the key whose place in a tile has its number.
struct Place {
    int segment;
    int token;
    int rank;
};

// Dynamic shared memory.
struct Memory {
    element *queries;
    // STAGES times a tile of keys and one of values.
    element *stages;
    long long *positions;
    int *tokens;
    // One a segment, and one more whose first tile is the number of tiles.
    Share *shares;
};

__device__ __forceinline__ Memory memory_at(unsigned char *start) {
    Memory memory;
    memory.queries = (element *)start;
    memory.stages = memory.queries + ROWS * STRIDE;
    memory.positions = (long long *)(memory.stages + STAGES * 2 * TILE);
    memory.tokens = (int *)(memory.positions + SLOTS * KEYS);
    memory.shares = (Share *)(memory.tokens + SLOTS * KEYS);
    return memory;
}

// The key of tile `tile` that is this thread's; `segment` is the tile's or one before.
__device__ __forceinline__ Place place_in(const Segment *segments, const Share *shares, int segment, int tile, int end) {
    Place place;
    place.token = NO_TOKEN;
    place.rank = 0;
    if (tile < end) {
        while (tile >= shares[segment + 1].first_tile) segment++;
        int rank = shares[segment].first + (tile - shares[segment].first_tile) * KEYS + (int)threadIdx.x;
        if ((int)threadIdx.x < KEYS && rank < shares[segment].end) {
            place.token = token_of(segments[segment], rank);
            place.rank = rank;
        }
    }
    place.segment = segment;
    return place;
}

__device__ __forceinline__ void note(const Memory &memory, const Segment *segments, int slot, const Place &place) {
    if (threadIdx.x >= KEYS) return;
    int at = slot * KEYS + threadIdx.x;
    memory.tokens[at] = place.token;
    if (place.token == NO_TOKEN) return;
    const Segment &segment = segments[place.segment];
    memory.positions[at] = position_at(segment.key_position, segment.key_shift, place.token, place.rank);
}

// Starts the copies of the keys and values whose tokens are in `slot`. A thread copies what it will turn.
__device__ __forceinline__ void start_copies(const Memory &memory, const PageEntry *pages, int kv_head, int stage, int slot) {
    element *keys = memory.stages + stage * 2 * TILE, *values = keys + TILE;
    for (int i = threadIdx.x; i < KEYS * UNITS; i += THREADS) {
        int place = i / UNITS, unit = i % UNITS;
        int token = memory.tokens[slot * KEYS + place];
        bool is_there = token != NO_TOKEN;
        int column = unit * 8, to = place * STRIDE + column;
        const element *key = is_there ? key_row(pages, kv_head, token) + column : 0;
        const element *value = is_there ? value_row(pages, kv_head, token) + column : 0;
#pragma unroll
        for (int e = 0; e < 8; e += 16 / (int)sizeof(element)) {
            copy_async_16(keys + to + e, key + e, is_there);
            copy_async_16(keys + to + HALF + e, key + HALF + e, is_there);
            copy_async_16(values + to + e, value + e, is_there);
            copy_async_16(values + to + HALF + e, value + HALF + e, is_there);
        }
    }
}

__device__ __forceinline__ void rotate_keys(const Memory &memory, const Rope &rope, int stage, int slot) {
    element *keys = memory.stages + stage * 2 * TILE;
    for (int i = threadIdx.x; i < KEYS * UNITS; i += THREADS) {
        int place = i / UNITS, unit = i % UNITS;
        if (memory.tokens[slot * KEYS + place] == NO_TOKEN) continue;
        element *row = keys + place * STRIDE + unit * 8;
        float low[8], high[8];
        load_elements(low, row);
        load_elements(high, row + HALF);
        rotate(rope, memory.positions[slot * KEYS + place], unit, low, high);
        store_elements(row, low);
        store_elements(row + HALF, high);
    }
}

// Queries at their positions towards a segment, times `factor`; zeros after the last row.
__device__ __forceinline__ void stage_queries(element *queries, const Rows &rows, const Segment &segment, float factor) {
    for (int i = threadIdx.x; i < ROWS * UNITS; i += THREADS) {
        int row = i / UNITS, unit = i % UNITS;
        float low[8], high[8];
#pragma unroll
        for (int e = 0; e < 8; e++) low[e] = high[e] = 0;
        if (row < rows.count) load_query(rows, segment, row, unit, low, high);
#pragma unroll
        for (int e = 0; e < 8; e++) low[e] *= factor, high[e] *= factor;
        element *to = queries + row * STRIDE + unit * 8;
        store_elements(to, low);
        store_elements(to + HALF, high);
    }
}

// Whether queries stand alike towards two segments.
__device__ __forceinline__ bool stands_alike(const Segment &x, const Segment &y) {
    return x.query_rope.fine == y.query_rope.fine && x.query_shift == y.query_shift && is_same_map(x.query_position, y.query_position);
}

// What a warp has of its rows. With lane / 4 = r a thread has rows r (h = 0) and r + 8 (h = 1) of each sixteen.
struct Running {
    // The largest logit to base 2, the sum of weights relative to it (this thread's columns alone), and the weighted values.
    float max[ROW_TILES][2];
    float sum[ROW_TILES][2];
    float out[ROW_TILES][HEAD_DIM / 8][4];
};

// PIECE keys: logits, mask, softmax, values. A call of the whole warp.
__device__ __forceinline__ void take_piece(
    Running &running, const element *queries, const element *keys, const element *values, const int *tokens, bool is_masked, const Segment &segment,
    const Rows &rows, int warp_row, int warp_last
) {
    int lane = threadIdx.x % WARP;
    float s[ROW_TILES][PIECE / 8][4];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int n = 0; n < PIECE / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[m][n][e] = 0;
#pragma unroll
    for (int k = 0; k < HEAD_DIM; k += 16) {
        FragmentA a[ROW_TILES];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) load_a(a[m], queries + m * 16 * STRIDE + k, STRIDE);
#pragma unroll
        for (int n = 0; n < PIECE / 8; n += 2) {
            FragmentB b[2];
            load_b_pair(b, keys + n * 8 * STRIDE + k, STRIDE);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) multiply(s[m][n], a[m], b[0]), multiply(s[m][n + 1], a[m], b[1]);
        }
    }
    if (is_masked) {
#pragma unroll
        for (int i = 0; i < 2 * ROW_TILES; i++) {
            // Rows after the last are not written: they may see anything.
            int row = warp_row + i * 8 + lane / 4;
            Seen seen = seen_by(segment, rows.first + step_token(rows, row < warp_last ? row : warp_last));
#pragma unroll
            for (int n = 0; n < PIECE / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int token = tokens[n * 8 + lane % 4 * 2 + e];
                    if (token < seen.first || token >= seen.end) s[i / 2][n][i % 2 * 2 + e] = MINUS_INFINITY;
                }
        }
    }
    bool is_larger = false;
    float factors[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float largest = running.max[m][h];
#pragma unroll
            for (int n = 0; n < PIECE / 8; n++) largest = fmaxf(largest, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, 2));
            is_larger |= largest > running.max[m][h];
            // A row that has seen nothing so far keeps weights of zero.
            float relative_to = largest == MINUS_INFINITY ? 0 : largest;
            factors[m][h] = exp2f(running.max[m][h] - relative_to);
            running.max[m][h] = largest;
            float sum = running.sum[m][h] * factors[m][h];
#pragma unroll
            for (int n = 0; n < PIECE / 8; n++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    s[m][n][e] = exp2f(s[m][n][e] - relative_to);
                    sum += s[m][n][e];
                }
            running.sum[m][h] = sum;
        }
    // Seldom so, after the first tiles.
    if (__any_sync(FULL, is_larger)) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) running.out[m][n][e] *= factors[m][e / 2];
    }
#pragma unroll
    for (int k = 0; k < PIECE / 16; k++) {
        // What a thread has of two neighbouring results of a product is what it has of a left factor.
        FragmentA weights[ROW_TILES];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *two = s[m][2 * k + i / 2] + i % 2 * 2;
                fill(&weights[m].r[0][i], 4, two[0], two[1]);
            }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            FragmentB b;
            load_b_rows(b, values + k * 16 * STRIDE + n * 8, STRIDE);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) multiply(running.out[m][n], weights[m], b);
        }
    }
}

// Where results go: to `out` and `lse` with one split, else to the other three, one after another by split.
struct Results {
    float *out;
    float *lse;
    float *split_max;
    float *split_sum;
    float *split_out;
};

// Notes the largest logit and the sum of weights of a row; gives what its weighted values are to be multiplied with.
__device__ __forceinline__ float finish(const Results &to, long long row, bool is_first, float max, float sum) {
    if (to.split_max != 0) {
        if (is_first) to.split_max[row] = max, to.split_sum[row] = sum;
        return 1;
    }
    if (is_first && to.lse != 0) to.lse[row] = sum > 0 ? (max + log2f(sum)) * LN_2 : MINUS_INFINITY;
    return sum > 0 ? 1 / sum : 0;
}

// Two neighbouring results of a product, 8 bytes at a time.
struct alignas(8) Floats2 {
    float x[2];
};
__device__ __forceinline__ void store_two(float *to, const float *from, float factor) {
    Floats2 two;
    two.x[0] = from[0] * factor;
    two.x[1] = from[1] * factor;
    *(Floats2 *)to = two;
}

// Writes the rows of warps that have the keys of a tile to themselves.
__device__ __forceinline__ void write_rows(const Results &to, const Rows &rows, int warp_row, const Running &running) {
    int lane = threadIdx.x % WARP;
    float *out = to.split_max != 0 ? to.split_out : to.out;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = warp_row + m * 16 + h * 8 + lane / 4;
            if (row >= rows.count) continue;
            long long place = place_of_row(rows, row);
            float factor = finish(to, place, lane % 4 == 0, running.max[m][h], running.sum[m][h]);
            float *at = out + place * HEAD_DIM + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) store_two(at + n * 8, running.out[m][n] + 2 * h, factor);
        }
}

// Adds up what KEY_WARPS warps have of the same rows, in shared memory, and writes it.
__device__ __forceinline__ void merge_warps(
    unsigned char *memory, const Results &to, const Rows &rows, int warp_row, int key_warp, const Running &running
) {
    int lane = threadIdx.x % WARP;
    float *max = (float *)memory, *sum = max + KEY_WARPS * ROWS, *values = sum + KEY_WARPS * ROWS;
    float *out = to.split_max != 0 ? to.split_out : to.out;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = key_warp * ROWS + warp_row + m * 16 + h * 8 + lane / 4;
            if (lane % 4 == 0) max[row] = running.max[m][h], sum[row] = running.sum[m][h];
            float *at = values + row * MERGED_STRIDE + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) store_two(at + n * 8, running.out[m][n] + 2 * h, 1);
        }
    __syncthreads();
    for (int i = threadIdx.x; i < rows.count * HEAD_DIM; i += THREADS) {
        int row = i / HEAD_DIM, column = i % HEAD_DIM;
        float largest = MINUS_INFINITY, total = 0, value = 0;
        for (int w = 0; w < KEY_WARPS; w++) largest = fmaxf(largest, max[w * ROWS + row]);
        for (int w = 0; w < KEY_WARPS; w++) {
            if (max[w * ROWS + row] == MINUS_INFINITY) continue;
            float factor = exp2f(max[w * ROWS + row] - largest);
            total += factor * sum[w * ROWS + row];
            value += factor * values[(w * ROWS + row) * MERGED_STRIDE + column];
        }
        long long place = place_of_row(rows, row);
        out[place * HEAD_DIM + column] = value * finish(to, place, column == 0, largest, total);
    }
}

// Grid: blocks of rows, KV heads, splits. `q` is `[q_len, n_heads, HEAD_DIM]`; `segments` of list i are numbers `starts[i]` to
// `starts[i + 1]` - 1, with one list for all KV heads or one a KV head. `lse` may be null; with one split `split_*` are.
extern "C" __global__ void attend(
    const float *q, const PageEntry *pages, const Segment *all_segments, const int *starts, int lists, int q_len, int n_heads, int group, int first,
    float scale, float *out, float *lse, float *split_max, float *split_sum, float *split_out
) {
    DYNAMIC_SHARED(shared);
    Memory memory = memory_at(shared);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int kv_head = blockIdx.y, split = blockIdx.z, splits = gridDim.z;
    Rows rows;
    rows.q = q, rows.n_heads = n_heads, rows.group = group, rows.first = first, rows.kv_head = kv_head;
    // The last rows see most: they start first.
    rows.from = (int)(gridDim.x - 1 - blockIdx.x) * ROWS;
    rows.count = q_len * group - rows.from < ROWS ? q_len * group - rows.from : ROWS;
    Results to;
    long long all_rows = (long long)q_len * n_heads;
    to.out = out, to.lse = lse;
    to.split_max = splits == 1 ? 0 : split_max + split * all_rows;
    to.split_sum = split_sum + split * all_rows;
    to.split_out = split_out + split * all_rows * HEAD_DIM;

    int list = lists == 1 ? 0 : kv_head, n_segments = starts[list + 1] - starts[list];
    const Segment *segments = all_segments + starts[list];
    int first_query = first + step_token(rows, 0), last_query = first + step_token(rows, rows.count - 1);
    for (int i = warp; i < n_segments; i += WARPS) {
        Seen ranks = seen_ranks(segments[i], first_query, last_query);
        if (lane == 0) memory.shares[i].first = ranks.first, memory.shares[i].end = ranks.end;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int tiles = 0;
        for (int i = 0; i < n_segments; i++) {
            memory.shares[i].first_tile = tiles;
            tiles += (memory.shares[i].end - memory.shares[i].first + KEYS - 1) / KEYS;
        }
        memory.shares[n_segments].first_tile = tiles;
    }
    __syncthreads();
    long long tiles = memory.shares[n_segments].first_tile;
    int begin = (int)(tiles * split / splits), end = (int)(tiles * (split + 1) / splits);
    if (begin == end && splits > 1) {
        // Nothing to add: the merge looks no further than the largest logit.
        if ((int)threadIdx.x < rows.count) to.split_max[place_of_row(rows, threadIdx.x)] = MINUS_INFINITY;
        return;
    }

    int row_warp = warp % ROW_WARPS, key_warp = warp / ROW_WARPS, warp_row = row_warp * WARP_ROWS;
    int warp_last = (warp_row + WARP_ROWS < rows.count ? warp_row + WARP_ROWS : rows.count) - 1;
    Running running;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) running.max[m][h] = MINUS_INFINITY, running.sum[m][h] = 0;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) running.out[m][n][e] = 0;
    }

    // Tokens of the first tiles, then their copies; from then on tokens are read a tile ahead of the copies.
    Place places[STAGES - 1];
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) places[i] = place_in(segments, memory.shares, i == 0 ? 0 : places[i - 1].segment, begin + i, end);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) note(memory, segments, i, places[i]);
    __syncthreads();
    for (int i = 0; i < STAGES - 1; i++) {
        start_copies(memory, pages, kv_head, i, i);
        copy_async_commit();
    }
    Place next = place_in(segments, memory.shares, places[STAGES - 2].segment, begin + STAGES - 1, end);

    int segment = 0, staged = -1, stage = 0, slot = 0, free_stage = STAGES - 1, free_slot = STAGES - 1;
    // What all rows of the warp see, and what any of them sees.
    Seen by_all, by_any;
    by_all.first = by_all.end = by_any.first = by_any.end = 0;
    for (int tile = begin; tile < end; tile++) {
        while (tile >= memory.shares[segment + 1].first_tile) segment++;
        const Segment &of = segments[segment];
        COPY_ASYNC_WAIT(STAGES - 2);
        rotate_keys(memory, of.key_rope, stage, slot);
        note(memory, segments, free_slot, next);
        if (segment != staged) {
            if (staged < 0 || !stands_alike(of, segments[staged])) {
                // Other warps may be at the tile before, with the queries as they stood towards that.
                __syncthreads();
                stage_queries(memory.queries, rows, of, scale * LOG2_E);
            }
            staged = segment;
            if (warp_row < rows.count) {
                Seen by_first = seen_by(of, first + step_token(rows, warp_row)), by_last = seen_by(of, first + step_token(rows, warp_last));
                by_any.first = by_first.first, by_any.end = by_last.end;
                by_all.first = by_last.first, by_all.end = by_first.end;
            }
        }
        __syncthreads();
        start_copies(memory, pages, kv_head, free_stage, free_slot);
        copy_async_commit();
        next = place_in(segments, memory.shares, next.segment, tile + STAGES, end);

#pragma unroll 1
        for (int i = 0; i < WARP_KEYS; i += PIECE) {
            int place = key_warp * WARP_KEYS + i;
            const int *tokens = memory.tokens + slot * KEYS + place;
            int first_token = tokens[0], last_token = tokens[PIECE - 1];
            if (first_token >= by_any.end || last_token < by_any.first) continue;
            bool is_masked = first_token < by_all.first || last_token >= by_all.end;
            const element *keys = memory.stages + stage * 2 * TILE + place * STRIDE;
            take_piece(running, memory.queries + warp_row * STRIDE, keys, keys + TILE, tokens, is_masked, of, rows, warp_row, warp_last);
        }
        stage = stage + 1 < STAGES ? stage + 1 : 0;
        slot = slot + 1 < SLOTS ? slot + 1 : 0;
        free_stage = free_stage + 1 < STAGES ? free_stage + 1 : 0;
        free_slot = free_slot + 1 < SLOTS ? free_slot + 1 : 0;
    }
    COPY_ASYNC_WAIT(0);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = running.sum[m][h];
            sum += __shfl_xor_sync(FULL, sum, 1);
            running.sum[m][h] = sum + __shfl_xor_sync(FULL, sum, 2);
        }
#if KEY_WARPS == 1
    write_rows(to, rows, warp_row, running);
#else
    __syncthreads();
    merge_warps(shared, to, rows, warp_row, key_warp, running);
#endif
}

// Threads that share out the splits of a column.
#define MERGERS 4

// Adds up what the splits have, always in the same order. A block a row of `[q_len, n_heads]`, MERGERS times as many threads as
// columns, these in whole warps.
extern "C" __global__ void merge_splits(
    const float *split_max, const float *split_sum, const float *split_out, int splits, float *out, float *lse
) {
    __shared__ float sums[MERGERS], values[MERGERS * HEAD_DIM];
    long long row = blockIdx.x, rows = gridDim.x;
    int columns = blockDim.x / MERGERS, part = threadIdx.x / columns, column = threadIdx.x % columns;
    bool has_column = column < HEAD_DIM;
    float largest = MINUS_INFINITY;
    for (int i = threadIdx.x % WARP; i < splits; i += WARP) largest = fmaxf(largest, split_max[i * rows + row]);
    largest = warp_max(largest);
    float sum = 0, value = 0;
    // Without branches, so that many loads are under way. A split that saw nothing wrote its largest logit alone.
#pragma unroll 8
    for (int i = part; i < splits; i += MERGERS) {
        long long at = i * rows + row;
        float max = split_max[at], its_sum = split_sum[at], its_value = has_column ? split_out[at * HEAD_DIM + column] : 0;
        float factor = exp2f(max - largest);
        sum += max != MINUS_INFINITY ? factor * its_sum : 0;
        value += max != MINUS_INFINITY ? factor * its_value : 0;
    }
    if (column == 0) sums[part] = sum;
    if (has_column) values[part * HEAD_DIM + column] = value;
    __syncthreads();
    if (part > 0 || !has_column) return;
    for (int i = 1; i < MERGERS; i++) value += values[i * HEAD_DIM + column];
    Results to;
    to.lse = lse, to.split_max = 0;
    float total = 0;
    for (int i = 0; i < MERGERS; i++) total += sums[i];
    out[row * HEAD_DIM + column] = value * finish(to, row, column == 0, largest, total);
}

// The keys with the largest products, without the products ever leaving the chip: scores of a tile of keys stay in registers,
// where they are compared with the worst of each row's best.
//
// A row is one query and head. The heads of a KV head are rows of the same block, so that a key is read once for all of them.
// A part is a piece of the range of keys; each has a list of the best of its own, and top_k_merge makes one of them.
//
// Macros besides ELEMENT and HEAD_DIM:
//   WARPS          warps of a block
//   FRAGMENTS      rows of a warp, in fragments of 16
//   SHARE_KEYS     1: the warps of a block hold different rows and read the same tiles of one part;
//                  0: they hold the same rows, and each reads a part of its own
//   TILE           keys fetched at once, CHUNK of which are scored at once: multiples of 16
//   STAGES         tiles in shared memory
//   BLOCKS         blocks that a multiprocessor is to run at once
//   BEST_PER_TILE  0: all keys compete; otherwise the best of every so many keys, a multiple of TILE

#define WARP_ROWS (16 * FRAGMENTS)
#define LISTS (WARPS * WARP_ROWS)
// Rows of a thread: two of each fragment.
#define OWN (2 * FRAGMENTS)
#define STEPS (HEAD_DIM / 16)
// What one copy takes: 16 bytes.
#define PIECE (16 / (int)sizeof(element))
#define PIECES (HEAD_DIM / PIECE)
// A row and one piece more is an odd number of pieces: the eight rows of a matrix lie in different banks.
#define STRIDE (HEAD_DIM + PIECE)
#if SHARE_KEYS
#define TEAMS 1
#define TEAM_THREADS (WARPS * WARP)
#define TEAM_BARRIER() __syncthreads()
#else
#define TEAMS WARPS
#define TEAM_THREADS WARP
#define TEAM_BARRIER() __syncwarp()
#endif
// Keys of the smallest part.
#if BEST_PER_TILE
#define UNIT BEST_PER_TILE
#else
#define UNIT TILE
#endif
// The most parts of a row; MOST_PARTS of src/top_k.rs.
#define MOST_PARTS 1024
#define MERGE_WARPS 4

// Where the heads of a KV head stand: head = kv_head * kv_step + member * head_step.
__device__ __forceinline__ int head_of(int kv_head, int member, int kv_step, int head_step) {
    return kv_head * kv_step + member * head_step;
}

// The queries of the warp's rows; zeros beyond the last.
__device__ __forceinline__ void load_queries(FragmentA q[FRAGMENTS][STEPS], const float *queries, int n_heads, int kv_head,
                                             int kv_step, int head_step, int group, int first_voter, int voter_stride,
                                             int first_row, int rows) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        int row = first_row + own * 8 + lane / 4;
        bool is_there = row < rows;
        int token = first_voter + row / group * voter_stride;
        int head = head_of(kv_head, row % group, kv_step, head_step);
        const float *at = queries + (is_there ? ((long long)token * n_heads + head) * HEAD_DIM : 0) + lane % 4 * 2;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float2 pair = make_float2(0.0f, 0.0f);
                if (is_there) pair = *(const float2 *)(at + 16 * step + 8 * half);
                fill(&q[own / 2][step].r[0][own % 2 + 2 * half], 4, pair.x, pair.y);
            }
        }
    }
}

// Starts to copy the keys from `token` on; what lies at `end` or beyond becomes zeros.
__device__ __forceinline__ void load_tile(element *tile, const PageEntry *pages, int kv_head, int token, int end) {
    int thread = threadIdx.x % TEAM_THREADS;
    // A tile lies in two pages at most.
    int border = (token / PAGE + 1) * PAGE;
    const element *here = key_row(pages, kv_head, token);
    const element *beyond = key_row(pages, kv_head, border < end ? border : token);
#pragma unroll
    for (int piece = thread; piece < TILE * PIECES; piece += TEAM_THREADS) {
        int row = piece / PIECES, column = piece % PIECES * PIECE;
        bool is_there = token + row < end;
        const element *from = token + row < border ? here + row * HEAD_DIM : beyond + (token + row - border) * HEAD_DIM;
        copy_async_16(tile + row * STRIDE + column, is_there ? from + column : here, is_there);
    }
}

// The best of what the four lanes of a row offer enters the row's list if it is better than the last of it. All lanes of the
// warp call this together. Returns whether any row's did; `token` becomes that of the row's best.
//
// Slot i of a list is at [i * LISTS], best first; tokens stand LISTS * k behind their scores. Only the first of the four lanes
// touches it; all four know its last score.
__device__ __forceinline__ bool offer(float *list, int k, float score, int &token, float &worst) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int d = 1; d < 4; d *= 2) {
        float other = __shfl_xor_sync(FULL, score, d);
        int other_token = __shfl_xor_sync(FULL, token, d);
        if (other > score || (other == score && other_token < token)) {
            score = other;
            token = other_token;
        }
    }
    bool enters = score > worst;
    if (!__any_sync(FULL, enters)) return false;
    float last = worst;
    if (enters && lane % 4 == 0) {
        // Tokens come in ascending order, so that an equal score stays before this one.
        u32 *tokens = (u32 *)list + LISTS * k;
        int at = (k - 1) * LISTS;
        for (; at > 0 && list[at - LISTS] < score; at -= LISTS) {
            list[at] = list[at - LISTS];
            tokens[at] = tokens[at - LISTS];
        }
        list[at] = score;
        tokens[at] = (u32)token;
        last = list[(k - 1) * LISTS];
    }
    worst = __shfl_sync(FULL, last, lane / 4 * 4);
    return true;
}

// The best of each part, best first, for the rows of one KV head: `scores` and `tokens` are [n_kv_heads, rows, parts, k].
// Slots that found no key have NONE. Blocks: rows, KV heads, parts.
extern "C" __global__ void __launch_bounds__(WARPS * WARP, BLOCKS)
top_k_scores(const float *queries, const PageEntry *pages, int n_heads, int kv_step, int head_step, int group,
             int first_voter, int voter_stride, int rows, int begin, int end, int parts, int k, float *scores,
             u32 *tokens) {
    DYNAMIC_SHARED(memory);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int team = SHARE_KEYS ? 0 : warp;
    int kv_head = blockIdx.y, part = blockIdx.z * TEAMS + team;
    int first_row = (blockIdx.x * (SHARE_KEYS ? WARPS : 1) + (SHARE_KEYS ? warp : 0)) * WARP_ROWS;
    element *stages = (element *)memory + team * (STAGES * TILE * STRIDE);
    float *lists = (float *)((element *)memory + TEAMS * STAGES * TILE * STRIDE) + warp * WARP_ROWS;

    // Units are dealt out evenly.
    long long units = (end - begin + UNIT - 1) / UNIT;
    int from = begin + (int)(units * part / parts) * UNIT;
    int to = begin + (int)(units * (part + 1) / parts) * UNIT;
    to = to < end ? to : end;

#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (from + i * TILE < to) load_tile(stages + i * TILE * STRIDE, pages, kv_head, from + i * TILE, to);
        copy_async_commit();
    }

    FragmentA q[FRAGMENTS][STEPS];
    load_queries(q, queries, n_heads, kv_head, kv_step, head_step, group, first_voter, voter_stride, first_row, rows);
    float worst[OWN];
    float *list = lists + lane / 4;
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        // Nothing is better than what rows beyond the last have.
        worst[own] = first_row + own * 8 + lane / 4 < rows ? MINUS_INFINITY : -MINUS_INFINITY;
        for (int slot = 0; slot < k && lane % 4 == 0; slot++) {
            list[own * 8 + slot * LISTS] = MINUS_INFINITY;
            ((u32 *)list)[own * 8 + (k + slot) * LISTS] = NONE;
        }
    }
#if BEST_PER_TILE
    float best[OWN];
    int best_token[OWN];
#pragma unroll
    for (int own = 0; own < OWN; own++) best[own] = MINUS_INFINITY, best_token[own] = 0;
#endif

    int stage = 0;
    for (int tile = from; tile < to; tile += TILE) {
        COPY_ASYNC_WAIT(STAGES - 2);
        // The tile is there for all, and none still reads the one before, whose place the next to come takes.
        TEAM_BARRIER();
        int ahead = tile + (STAGES - 1) * TILE;
        if (ahead < to) load_tile(stages + (stage == 0 ? STAGES - 1 : stage - 1) * TILE * STRIDE, pages, kv_head, ahead, to);
        copy_async_commit();
        const element *keys = stages + stage * TILE * STRIDE;
        stage = stage == STAGES - 1 ? 0 : stage + 1;

#pragma unroll 1
        for (int chunk = 0; chunk < TILE; chunk += CHUNK) {
            float s[FRAGMENTS][CHUNK / 8][4];
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
                for (int n = 0; n < CHUNK / 8; n++) s[f][n][0] = s[f][n][1] = s[f][n][2] = s[f][n][3] = 0.0f;
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
#pragma unroll
                for (int n = 0; n < CHUNK / 8; n += 2) {
                    FragmentB b[2];
                    load_b_pair(b, keys + (chunk + 8 * n) * STRIDE + 16 * step, STRIDE);
#pragma unroll
                    for (int f = 0; f < FRAGMENTS; f++) {
                        multiply(s[f][n], q[f][step], b[0]);
                        multiply(s[f][n + 1], q[f][step], b[1]);
                    }
                }
            }

            // This thread has columns 8n + 2(lane % 4) and the one after of its rows.
            int token = tile + chunk + lane % 4 * 2;
            if (tile + chunk + CHUNK > to) {
#pragma unroll
                for (int i = 0; i < OWN * CHUNK / 4; i++) {
                    int own = i / (CHUNK / 4), n = i / 2 % (CHUNK / 8), j = i % 2;
                    if (token + 8 * n + j >= to) s[own / 2][n][own % 2 * 2 + j] = MINUS_INFINITY;
                }
            }
#if BEST_PER_TILE
#pragma unroll
            for (int own = 0; own < OWN; own++)
#pragma unroll
                for (int i = 0; i < CHUNK / 4; i++) {
                    float score = s[own / 2][i / 2][own % 2 * 2 + i % 2];
                    if (score > best[own]) best[own] = score, best_token[own] = token + i / 2 * 8 + i % 2;
                }
#else
            u32 enters = 0; // a bit for each row
#pragma unroll
            for (int own = 0; own < OWN; own++) {
                float most = MINUS_INFINITY;
#pragma unroll
                for (int i = 0; i < CHUNK / 4; i++) most = fmaxf(most, s[own / 2][i / 2][own % 2 * 2 + i % 2]);
                enters |= (most > worst[own] ? 1u : 0u) << own;
            }
            if (!__any_sync(FULL, enters != 0)) continue;
#pragma unroll
            for (int own = 0; own < OWN; own++) {
                if (!__any_sync(FULL, enters >> own & 1)) continue;
                while (true) {
                    float score = MINUS_INFINITY;
                    int best = token;
#pragma unroll
                    for (int i = 0; i < CHUNK / 4; i++) {
                        float other = s[own / 2][i / 2][own % 2 * 2 + i % 2];
                        if (other > score) score = other, best = token + i / 2 * 8 + i % 2;
                    }
                    if (!offer(list + own * 8, k, score, best, worst[own])) break;
                    // Those that did not enter will not later either.
#pragma unroll
                    for (int i = 0; i < CHUNK / 4; i++)
                        if (token + i / 2 * 8 + i % 2 == best) s[own / 2][i / 2][own % 2 * 2 + i % 2] = MINUS_INFINITY;
                }
            }
#endif
        }
#if BEST_PER_TILE
        if ((tile + TILE - from) % BEST_PER_TILE == 0 || tile + TILE >= to) {
#pragma unroll
            for (int own = 0; own < OWN; own++) {
                offer(list + own * 8, k, best[own], best_token[own], worst[own]);
                best[own] = MINUS_INFINITY;
            }
        }
#endif
    }
    COPY_ASYNC_WAIT(0);

    __syncwarp();
    for (int i = lane; i < WARP_ROWS * k; i += WARP) {
        int row = i / k, slot = i % k;
        if (first_row + row >= rows) break;
        long long at = (((long long)kv_head * rows + first_row + row) * parts + part) * k + slot;
        scores[at] = lists[slot * LISTS + row];
        tokens[at] = ((u32 *)lists)[(k + slot) * LISTS + row];
    }
}

// One list of the best of the lists of all parts, for each row: a warp a row. `found_scores` and `found_tokens` are
// [voters, n_heads, k]; slots that found no key become `unfilled_score` and `unfilled_token`.
extern "C" __global__ void __launch_bounds__(MERGE_WARPS * WARP)
top_k_merge(const float *scores, const u32 *tokens, int n_heads, int n_kv_heads, int kv_step, int head_step, int group,
            int rows, int parts, int k, float unfilled_score, int unfilled_token, float *found_scores,
            u32 *found_tokens) {
    __shared__ u8 taken[MERGE_WARPS][MOST_PARTS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int of_all = blockIdx.x * MERGE_WARPS + warp;
    if (of_all >= rows * n_kv_heads) return;
    int kv_head = of_all / rows, row = of_all % rows;
    scores += (long long)of_all * parts * k;
    tokens += (long long)of_all * parts * k;
    long long found = ((long long)(row / group) * n_heads + head_of(kv_head, row % group, kv_step, head_step)) * k;

    // A lane looks after every 32nd part: how much of each is taken, and the best of what is not.
    for (int part = lane; part < parts; part += WARP) taken[warp][part] = 0;
    float score = MINUS_INFINITY;
    u32 token = NONE;
    int of_part = -1;
    bool is_stale = true;
    for (int slot = 0; slot < k; slot++) {
        if (is_stale) {
            score = MINUS_INFINITY;
            token = NONE;
            of_part = -1;
            for (int part = lane; part < parts; part += WARP) {
                int at = taken[warp][part];
                if (at == k) continue;
                float other = scores[part * k + at];
                u32 other_token = tokens[part * k + at];
                if (other > score || (other == score && other_token < token)) {
                    score = other;
                    token = other_token;
                    of_part = part;
                }
            }
        }
        float best = score;
        u32 best_token = token;
#pragma unroll
        for (int d = WARP / 2; d > 0; d /= 2) {
            float other = __shfl_xor_sync(FULL, best, d);
            u32 other_token = __shfl_xor_sync(FULL, best_token, d);
            if (other > best || (other == best && other_token < best_token)) {
                best = other;
                best_token = other_token;
            }
        }
        if (lane == 0) {
            found_scores[found + slot] = best_token == NONE ? unfilled_score : best;
            found_tokens[found + slot] = best_token == NONE ? (u32)unfilled_token : best_token;
        }
        // Parts have no token in common.
        is_stale = of_part >= 0 && token == best_token;
        if (is_stale) taken[warp][of_part]++;
    }
}

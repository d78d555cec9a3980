// From the best keys of many queries and heads to spans of tokens: vote, clip, expand. Every vote adds to the weight of its
// token, the heaviest tokens stay, and each becomes a span.
//
// Tokens are counted from the start of the middle, which is what votes are for. Nothing here depends on the order in which
// threads run: weights are whole numbers, and candidates, which come in any order, are chosen by weight and token.
//
// There are two ways: select_all does everything in one block; or one kernel after the other does its part in many blocks.

#define BLOCK 1024
#define BIN_BITS 12
#define BINS (1 << BIN_BITS)

#define COUNT 0
#define MARGIN 1
#define SOFTMAX 2

// What is kept between calls; `State` of src/select.rs. All but the pointers and `most` is zero before and after.
struct Tallies {
    u64 *weights;    // by token, in steps of 2^-32
    u32 *seen;       // tokens voted for, a bit each
    u32 *chosen;     // tokens of the spans, a bit each
    u32 *candidates; // tokens voted for, as a list in any order
    u64 *heavy;      // their weights; holds anything before
    u32 *sums;       // bits of each BLOCK words of `chosen`; holds anything before
    u64 heaviest;
    u64 not_lightest; // the complement of the least weight
    u32 n_candidates;
    u32 most; // tokens of the largest selection so far
};

// What a block needs to know of itself.
struct Shared {
    u32 bins[BINS];
    u32 sums[WARP];
    u32 bin, above, inside;
};

// Adds up what the threads before have, and what all have. All threads of the block call this together.
__device__ __forceinline__ u32 sum_before(u32 x, u32 *sums, u32 &total) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    u32 up_to = x;
    for (int d = 1; d < WARP; d *= 2) {
        u32 other = __shfl_up_sync(FULL, up_to, d);
        if (lane >= d) up_to += other;
    }
    if (lane == WARP - 1) sums[warp] = up_to;
    __syncthreads();
    if (warp == 0) {
        u32 of_warps = lane < warps ? sums[lane] : 0;
        for (int d = 1; d < WARP; d *= 2) {
            u32 other = __shfl_up_sync(FULL, of_warps, d);
            if (lane >= d) of_warps += other;
        }
        sums[lane] = of_warps;
    }
    __syncthreads();
    u32 before = (warp > 0 ? sums[warp - 1] : 0) + up_to - x;
    total = sums[warps - 1];
    // The next call writes there.
    __syncthreads();
    return before;
}

// ---- votes ----

// What the vote for the key in `slot` of a query and head's best keys weighs.
__device__ __forceinline__ float weight_of(const u32 *tokens, const float *scores, int slot, int k, int rule, float scale) {
    if (rule == COUNT) return 1.0f;
    if (rule == MARGIN) {
        int last = slot;
        while (last + 1 < k && tokens[last + 1] != NONE) last++;
        return (scores[slot] - scores[last]) * scale;
    }
    float first = scores[0], total = 0.0f;
    for (int i = 0; i < k && tokens[i] != NONE; i++) total += expf((scores[i] - first) * scale);
    return expf((scores[slot] - first) * scale) / total;
}

__device__ __forceinline__ void tally(int thread, int threads, const u32 *tokens, const float *scores, int votes, int k,
                                      int rule, float scale, float limit, int start, int length, Tallies *t) {
    for (int vote = thread; vote < votes; vote += threads) {
        u32 token = tokens[vote];
        if (token == NONE || token < (u32)start || token - (u32)start >= (u32)length) continue;
        token -= (u32)start;
        int slot = vote % k;
        float steps = weight_of(tokens + vote - slot, scores + vote - slot, slot, k, rule, scale) * 4294967296.0f;
        // No number at all counts as nothing.
        if (steps > 0.0f) atomicAdd(&t->weights[token], (u64)(steps < limit ? steps : limit));
        u32 bit = 1u << token % 32;
        if ((atomicOr(&t->seen[token / 32], bit) & bit) == 0) t->candidates[atomicAdd(&t->n_candidates, 1u)] = token;
    }
}

// Puts the candidates' weights beside them, and leaves the weights by token clean. All lanes of a warp call this together.
__device__ __forceinline__ void weigh(int thread, int threads, Tallies *t) {
    u64 heaviest = 0, not_lightest = 0;
    for (int i = thread; i < (int)t->n_candidates; i += threads) {
        u32 token = t->candidates[i];
        u64 weight = t->weights[token];
        t->heavy[i] = weight;
        t->weights[token] = 0;
        t->seen[token / 32] = 0;
        heaviest = weight > heaviest ? weight : heaviest;
        not_lightest = ~weight > not_lightest ? ~weight : not_lightest;
    }
    for (int d = WARP / 2; d > 0; d /= 2) {
        u64 other = __shfl_xor_sync(FULL, heaviest, d), other_not = __shfl_xor_sync(FULL, not_lightest, d);
        heaviest = other > heaviest ? other : heaviest;
        not_lightest = other_not > not_lightest ? other_not : not_lightest;
    }
    if (threadIdx.x % WARP == 0 && heaviest > 0) atomicMax(&t->heaviest, heaviest);
    if (threadIdx.x % WARP == 0 && not_lightest > 0) atomicMax(&t->not_lightest, not_lightest);
}

// ---- the heaviest ----

__device__ __forceinline__ int bits_of(u64 x) {
    return x >> 32 != 0 ? 64 - __clz((int)(x >> 32)) : 32 - __clz((int)x);
}

// Narrows low..=high, which holds more than `wanted` keys, until the `wanted` largest of them are just those from the low end
// that is returned on, or all that are left are equal. `wanted` becomes what is wanted of the keys left, `inside` their number.
// Keys are weights, or the complements of the tokens that have weight `tie`.
__device__ __forceinline__ u64 narrow(Tallies *t, int n, bool is_tie, u64 tie, u64 low, u64 high, u32 &wanted, u32 &inside,
                                      Shared *shared) {
    while (low < high && inside > wanted) {
        int shift = bits_of(high - low) - BIN_BITS;
        shift = shift > 0 ? shift : 0;
        for (int bin = threadIdx.x; bin < BINS; bin += BLOCK) shared->bins[bin] = 0;
        __syncthreads();
        // Most weights may be the same: what falls into one bin in a row is added once.
        u32 bin = 0, run = 0;
        for (int i = threadIdx.x; i < n; i += BLOCK) {
            u64 weight = t->heavy[i];
            u64 key = is_tie ? (u64)~t->candidates[i] : weight;
            if (key < low || key > high || (is_tie && weight != tie)) continue;
            u32 of_key = (u32)((key - low) >> shift);
            if (of_key != bin && run > 0) {
                atomicAdd(&shared->bins[bin], run);
                run = 0;
            }
            bin = of_key;
            run++;
        }
        if (run > 0) atomicAdd(&shared->bins[bin], run);
        __syncthreads();
        // From the last bin down, a few of them a thread.
        int last = BINS - 1 - (int)threadIdx.x * (BINS / BLOCK);
        u32 sum = 0, total;
        for (int i = 0; i < BINS / BLOCK; i++) sum += shared->bins[last - i];
        u32 above = sum_before(sum, shared->sums, total);
        if (above < wanted && wanted <= above + sum) {
            int at = last;
            for (; above + shared->bins[at] < wanted; at--) above += shared->bins[at];
            shared->bin = at;
            shared->above = above;
            shared->inside = shared->bins[at];
        }
        __syncthreads();
        low += (u64)shared->bin << shift;
        u64 last_of_bin = low + (((u64)1 << shift) - 1);
        high = last_of_bin < high ? last_of_bin : high;
        wanted -= shared->above;
        inside = shared->inside;
    }
    return low;
}

// Marks the spans of the `clip` heaviest candidates, ties to the lower token. One block, all of which sees the marks after.
__device__ __forceinline__ void choose(int clip, int before, int after, int length, Tallies *t, Shared *shared) {
    int n = (int)t->n_candidates;
    u64 least = 0, least_of_tie = 0;
    if (n > clip) {
        u32 wanted = (u32)clip, inside = (u32)n;
        least = narrow(t, n, false, 0, ~t->not_lightest, t->heaviest, wanted, inside, shared);
        // Complements of tokens, so that the lower tokens are the larger keys.
        u64 highest = (u64)~0u;
        if (inside > wanted) least_of_tie = narrow(t, n, true, least, highest - (u32)(length - 1), highest, wanted, inside, shared);
    }
    for (int i = threadIdx.x; i < n; i += BLOCK) {
        u64 weight = t->heavy[i];
        u32 token = t->candidates[i];
        if (weight < least || (weight == least && (u64)~token < least_of_tie)) continue;
        int from = (int)token + before, to = (int)token + after;
        from = from > 0 ? from : 0;
        to = to < length ? to : length;
        for (int word = from / 32; word * 32 < to; word++) {
            u32 bits = ~0u;
            if (word * 32 < from) bits &= ~0u << (from - word * 32);
            if (word * 32 + 32 > to) bits &= ~0u >> (word * 32 + 32 - to);
            atomicOr(&t->chosen[word], bits);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) t->n_candidates = 0, t->heaviest = 0, t->not_lightest = 0;
}

// ---- the list ----

// Writes the tokens of a word, and leaves it clean.
__device__ __forceinline__ void list_word(u32 bits, int word, int start, u32 *tokens, u32 *words) {
    if (bits == 0) return;
    words[word] = 0;
    for (; bits != 0; bits &= bits - 1) *tokens++ = (u32)(start + word * 32 + __ffs((int)bits) - 1);
}

// ---- kernels ----

// Everything, in one block of BLOCK threads. `votes` tokens and scores are [rows, k], best first; `limit` is the most that a vote
// weighs in steps of 2^-32; the middle has `length` tokens from `start` on, spans go from `before` a centre to `after` it.
extern "C" __global__ void __launch_bounds__(BLOCK)
select_all(const u32 *voted, const float *scores, int votes, int k, int rule, float scale, float limit, int start, int length,
           int clip, int before, int after, Tallies *t, u32 *tokens, u32 *count) {
    __shared__ Shared shared;
    tally(threadIdx.x, BLOCK, voted, scores, votes, k, rule, scale, limit, start, length, t);
    __syncthreads();
    weigh(threadIdx.x, BLOCK, t);
    __syncthreads();
    choose(clip, before, after, length, t, &shared);
    int words = (length + 31) / 32;
    u32 listed = 0, total;
    for (int first = 0; first < words; first += BLOCK) {
        int word = first + threadIdx.x;
        u32 bits = word < words ? t->chosen[word] : 0;
        u32 at = sum_before(__popc(bits), shared.sums, total);
        list_word(bits, word, start, tokens + listed + at, t->chosen);
        listed += total;
    }
    if (threadIdx.x == 0) {
        *count = listed;
        atomicMax(&t->most, listed);
    }
}

// A thread a vote; as the first part of select_all.
extern "C" __global__ void select_tally(const u32 *voted, const float *scores, int votes, int k, int rule, float scale,
                                        float limit, int start, int length, Tallies *t) {
    tally(blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x, voted, scores, votes, k, rule, scale, limit, start,
          length, t);
}

extern "C" __global__ void select_weigh(Tallies *t) {
    weigh(blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x, t);
}

// One block of BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK)
select_choose(int clip, int before, int after, int length, Tallies *t) {
    __shared__ Shared shared;
    choose(clip, before, after, length, t, &shared);
}

// Counts the tokens of BLOCK words a block of BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK) select_count(int length, Tallies *t) {
    __shared__ u32 sums[WARP];
    int word = blockIdx.x * BLOCK + threadIdx.x;
    u32 total;
    sum_before(word < (length + 31) / 32 ? __popc(t->chosen[word]) : 0, sums, total);
    if (threadIdx.x == 0) t->sums[blockIdx.x] = total;
}

// Lists the tokens of BLOCK words a block of BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK) select_list(int start, int length, Tallies *t, u32 *tokens, u32 *count) {
    __shared__ u32 sums[WARP];
    u32 before = 0, listed, total;
    for (int block = threadIdx.x; block < (int)blockIdx.x; block += BLOCK) before += t->sums[block];
    sum_before(before, sums, listed);
    int word = blockIdx.x * BLOCK + threadIdx.x;
    u32 bits = word < (length + 31) / 32 ? t->chosen[word] : 0;
    u32 at = sum_before(__popc(bits), sums, total);
    list_word(bits, word, start, tokens + listed + at, t->chosen);
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) {
        *count = listed + total;
        atomicMax(&t->most, listed + total);
    }
}

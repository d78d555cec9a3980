// Boxes around neighbouring keys: what they are made of, and the search through them.
//
// A box is [largest, smallest]: the largest and the smallest value of each element over its keys. A query's vector for boxes
// is [max(q, 0), min(q, 0)]; its product with a box is what no key in the box exceeds. Small boxes hold SMALL keys, large
// ones LARGE. Their rows, of BOX elements, lie in pages as keys do: [n_kv_heads, PAGE, BOX].
//
// A row of a search is one query and head: voter * n_heads + head. Lists hold numbers of boxes, ascending, and NONE after
// the last; scores of what is not there are minus infinity.
//
// Macros besides ELEMENT and HEAD_DIM:
//   THREADS      threads of a block that picks the best of a row
//   DIGIT_BITS   bits by which it finds the last of the best, so that THREADS divides the number of digits' values

#define BOX (2 * HEAD_DIM)
// Keys in a box; SMALL and LARGE of src/boxes.rs.
#define SMALL 8
#define LARGE 128
#define WITHIN (LARGE / SMALL)
// What one load takes: 16 bytes.
#define PIECE (16 / (int)sizeof(element))

// Threads of a block; their twins stand in src/boxes.rs.
#define BUILD_THREADS 256
#define QUERY_THREADS 64
#define SCORE_WARPS 4
#define SORT_WARPS 4
// Keys found for a row, at most: MOST_KEYS of src/top_k.rs.
#define MOST_FOUND 64

#define PICK_WARPS (THREADS / WARP)

// Elements as they are loaded and stored, sixteen bytes at once.
typedef uint4 Piece;

__device__ __forceinline__ u32 word_of(const Piece &piece, int i) {
    return i == 0 ? piece.x : i == 1 ? piece.y : i == 2 ? piece.z : piece.w;
}
__device__ __forceinline__ float element_of(const Piece &piece, int i) {
#if ELEMENT == 2
    return __uint_as_float(word_of(piece, i));
#else
    return to_float((element)(word_of(piece, i / 2) >> i % 2 * 16));
#endif
}
__device__ __forceinline__ u32 word_from(const float *x, int i) {
#if ELEMENT == 2
    return __float_as_uint(x[i]);
#else
    return pack(from_float(x[2 * i]), from_float(x[2 * i + 1]));
#endif
}
__device__ __forceinline__ Piece piece_from(const float *x) {
    return make_uint4(word_from(x, 0), word_from(x, 1), word_from(x, 2), word_from(x, 3));
}

__device__ __forceinline__ element *box_row(const PageEntry *pages, int kv_head, int box) {
    return (element *)pages[box / PAGE].keys + (kv_head * PAGE + box % PAGE) * (long long)BOX;
}

__device__ __forceinline__ const float *query_row(const float *queries, int n_heads, int first_voter, int voter_stride,
                                                  int row) {
    long long token = first_voter + (long long)(row / n_heads) * voter_stride;
    return queries + (token * n_heads + row % n_heads) * HEAD_DIM;
}

// Four elements of a query's vector for boxes, from element i on, a multiple of 4.
__device__ __forceinline__ void for_boxes(float x[4], const float *query, int i) {
    bool is_largest = i < HEAD_DIM;
    float4 q = *(const float4 *)(query + (is_largest ? i : i - HEAD_DIM));
    x[0] = is_largest ? fmaxf(q.x, 0.0f) : fminf(q.x, 0.0f);
    x[1] = is_largest ? fmaxf(q.y, 0.0f) : fminf(q.y, 0.0f);
    x[2] = is_largest ? fmaxf(q.z, 0.0f) : fminf(q.z, 0.0f);
    x[3] = is_largest ? fmaxf(q.w, 0.0f) : fminf(q.w, 0.0f);
}

// ---- boxes from keys ----

// Puts keys into large boxes from number `from` on, and into the small ones within; the keys of box 0 begin at token
// `first`. Blocks: large boxes, KV heads.
extern "C" __global__ void __launch_bounds__(BUILD_THREADS)
boxes_build(const PageEntry *pages, const PageEntry *small_boxes, const PageEntry *large_boxes, int first, int from) {
    __shared__ Piece within[WITHIN * BOX / PIECE];
    int large = from + blockIdx.x, kv_head = blockIdx.y;
    for (int i = threadIdx.x; i < WITHIN * HEAD_DIM / PIECE; i += BUILD_THREADS) {
        int small = i / (HEAD_DIM / PIECE), piece = i % (HEAD_DIM / PIECE);
        int token = first + large * LARGE + small * SMALL;
        Piece keys[SMALL];
#pragma unroll
        for (int k = 0; k < SMALL; k++) keys[k] = ((const Piece *)key_row(pages, kv_head, token + k))[piece];
        float most[PIECE], least[PIECE];
#pragma unroll
        for (int e = 0; e < PIECE; e++) {
            most[e] = MINUS_INFINITY;
            least[e] = -MINUS_INFINITY;
#pragma unroll
            for (int k = 0; k < SMALL; k++) {
                most[e] = fmaxf(most[e], element_of(keys[k], e));
                least[e] = fminf(least[e], element_of(keys[k], e));
            }
        }
        Piece largest = piece_from(most), smallest = piece_from(least);
        Piece *row = (Piece *)box_row(small_boxes, kv_head, large * WITHIN + small);
        row[piece] = within[small * (BOX / PIECE) + piece] = largest;
        row[HEAD_DIM / PIECE + piece] = within[small * (BOX / PIECE) + HEAD_DIM / PIECE + piece] = smallest;
    }
    __syncthreads();
    element *row = box_row(large_boxes, kv_head, large);
    const element *of_small = (const element *)within;
    for (int i = threadIdx.x; i < BOX; i += BUILD_THREADS) {
        float most = to_float(of_small[i]);
        for (int small = 1; small < WITHIN; small++) {
            float other = to_float(of_small[small * BOX + i]);
            most = i < HEAD_DIM ? fmaxf(most, other) : fminf(most, other);
        }
        row[i] = from_float(most);
    }
}

// ---- large boxes ----

// Queries' vectors for boxes, [rows, BOX]. A block a row.
extern "C" __global__ void __launch_bounds__(QUERY_THREADS)
boxes_queries(const float *queries, int n_heads, int first_voter, int voter_stride, float *vectors) {
    int row = blockIdx.x;
    const float *query = query_row(queries, n_heads, first_voter, voter_stride, row);
    for (int i = 4 * threadIdx.x; i < BOX; i += 4 * QUERY_THREADS) {
        float x[4];
        for_boxes(x, query, i);
        *(float4 *)(vectors + (long long)row * BOX + i) = make_float4(x[0], x[1], x[2], x[3]);
    }
}

// Products with the large boxes, [rows, boxes]. Sixteen rows of a KV head are scored at once: they share the reading.
// Blocks: rows of a KV head by sixteens, KV heads, parts of the boxes of `boxes_each`, a multiple of 8.
//
// Sums may run over the elements in any order. This one lets a lane take its part of a box in whole pieces: piece j of the
// lane c of a row's four is at 4j + c, and four of its elements are what the lane gives to one product of the tensor core.
extern "C" __global__ void __launch_bounds__(SCORE_WARPS * WARP)
boxes_score_large(const float *queries, const PageEntry *large_boxes, int n_heads, int group, int first_voter,
                  int voter_stride, int rows, int boxes, int boxes_each, float *scores) {
    const int PIECES = BOX / PIECE / 4, HALVES = PIECE / 4;
    // Pieces that are loaded at once.
    const int BATCH = PIECES < 8 ? PIECES : 8;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int kv_head = blockIdx.y;
    FragmentA q[PIECES * HALVES];
    long long found[2];
#pragma unroll
    for (int own = 0; own < 2; own++) {
        // Rows of the KV head: its heads by voters.
        int of_head = blockIdx.x * 16 + own * 8 + lane / 4;
        bool is_there = of_head < rows;
        int row = is_there ? of_head / group * n_heads + kv_head * group + of_head % group : 0;
        found[own] = is_there ? (long long)row * boxes : -1;
        const float *query = query_row(queries, n_heads, first_voter, voter_stride, row);
#pragma unroll
        for (int step = 0; step < PIECES * HALVES; step++) {
            float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (is_there) for_boxes(x, query, (step / HALVES * 4 + lane % 4) * PIECE + step % HALVES * 4);
            fill(&q[step].r[0][own], 4, x[0], x[1]);
            fill(&q[step].r[0][own + 2], 4, x[2], x[3]);
        }
    }

    int begin = blockIdx.z * boxes_each;
    int end = begin + boxes_each < boxes ? begin + boxes_each : boxes;
    for (int first = begin + 8 * warp; first < end; first += 8 * SCORE_WARPS) {
        int box = first + lane / 4;
        const Piece *at = (const Piece *)box_row(large_boxes, kv_head, box < end ? box : end - 1) + lane % 4;
        float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < PIECES; j += BATCH) {
            Piece pieces[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (j + i < PIECES) pieces[i] = at[4 * (j + i)];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                if (j + i >= PIECES) break;
#if PARTS == 1
                FragmentB low, high;
                low.r[0][0] = pieces[i].x;
                low.r[0][1] = pieces[i].y;
                high.r[0][0] = pieces[i].z;
                high.r[0][1] = pieces[i].w;
                multiply(d, q[2 * (j + i)], low);
                multiply(d, q[2 * (j + i) + 1], high);
#else
                FragmentB b;
                fill(&b.r[0][0], 2, __uint_as_float(pieces[i].x), __uint_as_float(pieces[i].y));
                fill(&b.r[0][1], 2, __uint_as_float(pieces[i].z), __uint_as_float(pieces[i].w));
                multiply(d, q[j + i], b);
#endif
            }
        }
        // This lane has two neighbouring boxes of two rows.
        box = first + lane % 4 * 2;
#pragma unroll
        for (int own = 0; own < 2; own++) {
            if (found[own] < 0) continue;
            if (box < end) scores[found[own] + box] = d[2 * own];
            if (box + 1 < end) scores[found[own] + box + 1] = d[2 * own + 1];
        }
    }
}

// Sorts the lists of all rows, [rows, len], in ascending order. A warp a row.
extern "C" __global__ void __launch_bounds__(SORT_WARPS * WARP)
boxes_sort(const u32 *lists, int rows, int len, u32 *sorted) {
    int row = blockIdx.x * SORT_WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    lists += (long long)row * len;
    for (int i = threadIdx.x % WARP; i < len; i += WARP) {
        u32 number = lists[i];
        int rank = 0;
        for (int j = 0; j < len; j++) rank += lists[j] < number || (lists[j] == number && j < i);
        sorted[(long long)row * len + rank] = number;
    }
}

// ---- what lists name ----

// Products of a row's query with vectors of WIDTH elements: LANES lanes share a vector, and load OF_LANE pieces of it each.
template <int WIDTH> struct Shares {
    static const int PIECES = WIDTH / PIECE;
    static const int LANES = PIECES % 8 == 0 ? 8 : PIECES % 4 == 0 ? 4 : 2;
    static const int OF_LANE = PIECES / LANES;
    // Vectors of these lanes at once, so that many loads are under way.
    static const int AT_ONCE = OF_LANE <= 2 ? 4 : OF_LANE <= 4 ? 2 : 1;
};

// Scores what stands in a row's list of `len` boxes, `per` vectors a box, [rows, len * per]; `vector_at(i)` is where the vector
// i lies. Blocks: rows, parts of the vectors.
template <int WIDTH, class At>
__device__ __forceinline__ void score_listed(const float *query, const u32 *list, int len, int per, int each, float *scores,
                                             const At &vector_at) {
    const int LANES = Shares<WIDTH>::LANES, OF_LANE = Shares<WIDTH>::OF_LANE, AT_ONCE = Shares<WIDTH>::AT_ONCE;
    const int TEAMS = SCORE_WARPS * WARP / LANES;
    int lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
    float q[OF_LANE][PIECE];
#pragma unroll
    for (int j = 0; j < OF_LANE; j++)
#pragma unroll
        for (int e = 0; e < PIECE; e += 4) {
            const int i = (j * LANES + lane) * PIECE + e;
            if (WIDTH == BOX) {
                for_boxes(q[j] + e, query, i);
            } else {
                float4 x = *(const float4 *)(query + i);
                q[j][e] = x.x, q[j][e + 1] = x.y, q[j][e + 2] = x.z, q[j][e + 3] = x.w;
            }
#pragma unroll
            for (int d = 0; d < 4; d++) q[j][e + d] = to_float(from_float(q[j][e + d]));
        }

    int begin = blockIdx.y * each;
    int end = begin + each < len * per ? begin + each : len * per;
    // All lanes of a warp go round as often.
    for (int first = begin; first < end; first += TEAMS * AT_ONCE) {
        u32 box[AT_ONCE];
        Piece pieces[AT_ONCE][OF_LANE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int i = first + n * TEAMS + team;
            box[n] = i < end ? list[i / per] : NONE;
            if (box[n] == NONE) continue;
            const Piece *at = (const Piece *)vector_at((int)box[n] * per + i % per) + lane;
#pragma unroll
            for (int j = 0; j < OF_LANE; j++) pieces[n][j] = at[j * LANES];
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            float sum = MINUS_INFINITY;
            if (box[n] != NONE) {
                sum = 0.0f;
#pragma unroll
                for (int j = 0; j < OF_LANE; j++)
#pragma unroll
                    for (int e = 0; e < PIECE; e++) sum += q[j][e] * element_of(pieces[n][j], e);
            }
#pragma unroll
            for (int d = 1; d < LANES; d *= 2) sum += __shfl_xor_sync(FULL, sum, d);
            int i = first + n * TEAMS + team;
            if (lane == 0 && i < end) scores[i] = sum;
        }
    }
}

// Scores the small boxes within listed large ones: [rows, len * WITHIN].
extern "C" __global__ void __launch_bounds__(SCORE_WARPS * WARP)
boxes_score_small(const float *queries, const PageEntry *small_boxes, int n_heads, int group, int first_voter,
                  int voter_stride, const u32 *lists, int len, int each, float *scores) {
    int row = blockIdx.x, kv_head = row % n_heads / group;
    const float *query = query_row(queries, n_heads, first_voter, voter_stride, row);
    score_listed<BOX>(query, lists + (long long)row * len, len, WITHIN, each, scores + (long long)row * len * WITHIN,
                      [=](int box) { return (const element *)box_row(small_boxes, kv_head, box); });
}

// Scores the keys in listed small boxes: [rows, len * SMALL].
extern "C" __global__ void __launch_bounds__(SCORE_WARPS * WARP)
boxes_score_keys(const float *queries, const PageEntry *pages, int n_heads, int group, int first_voter, int voter_stride,
                 const u32 *lists, int len, int each, int first, float *scores) {
    int row = blockIdx.x, kv_head = row % n_heads / group;
    const float *query = query_row(queries, n_heads, first_voter, voter_stride, row);
    score_listed<HEAD_DIM>(query, lists + (long long)row * len, len, SMALL, each, scores + (long long)row * len * SMALL,
                           [=](int key) { return key_row(pages, kv_head, first + key); });
}

// ---- the best of many ----

// A number that grows with the score: 0 for what can never be found, minus infinity and what is no number.
__device__ __forceinline__ u32 sortable(float score) {
    if (!(score > MINUS_INFINITY)) return 0;
    // Both zeros are one.
    u32 bits = __float_as_uint(score + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

#define DIGITS ((32 + DIGIT_BITS - 1) / DIGIT_BITS)
#define DIGIT_VALUES (1 << DIGIT_BITS)

struct Pick {
    int counts[DIGIT_VALUES];
    int above[PICK_WARPS], equal[PICK_WARPS];
    // What the digits so far are, and how many of those that have them are to be taken.
    u32 prefix;
    int wanted;
    bool all;
};

// The best `m` of `n` scores, ties to the lower index: calls `take(slot, index)` for each, with slots in the order of the
// indices, and returns how many there are. All threads of the block call this.
template <class Take>
__device__ __forceinline__ int pick(Pick &shared, const float *scores, int n, int m, const Take &take) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) {
        shared.prefix = 0;
        shared.wanted = m;
        shared.all = false;
    }
    for (int digit = 0; digit < DIGITS; digit++) {
        // Bits from `known` on are those of `prefix`, those from `shift` on are looked at.
        int known = 32 - digit * DIGIT_BITS;
        int shift = known > DIGIT_BITS ? known - DIGIT_BITS : 0;
        for (int i = threadIdx.x; i < DIGIT_VALUES; i += THREADS) shared.counts[i] = 0;
        __syncthreads();
        u32 prefix = shared.prefix;
        int wanted = shared.wanted;
        for (int i = threadIdx.x; i < n; i += THREADS) {
            u32 key = sortable(scores[i]);
            bool is_among = key != 0 && (digit == 0 || key >> known == prefix >> known);
            if (is_among) atomicAdd(&shared.counts[key >> shift & ((1u << (known - shift)) - 1)], 1);
        }
        __syncthreads();
        // Each thread looks after a few values, the first thread after the largest.
        const int EACH = DIGIT_VALUES / THREADS;
        int last = DIGIT_VALUES - 1 - threadIdx.x * EACH;
        int own = 0;
        for (int i = 0; i < EACH; i++) own += shared.counts[last - i];
        int before = own;
        for (int d = 1; d < WARP; d *= 2) {
            int other = __shfl_up_sync(FULL, before, d);
            if (lane >= d) before += other;
        }
        if (lane == WARP - 1) shared.above[warp] = before;
        __syncthreads();
        before -= own;
        for (int w = 0; w < warp; w++) before += shared.above[w];
        if (before < wanted && wanted <= before + own) {
            int value = last;
            while (before + shared.counts[value] < wanted) before += shared.counts[value--];
            shared.prefix = prefix | (u32)value << shift;
            shared.wanted = wanted - before;
        }
        // There are no more than are wanted.
        if (digit == 0 && threadIdx.x == THREADS - 1) shared.all = before + own < wanted;
        __syncthreads();
        if (shared.all) break;
    }

    // What is above the last of the best is taken, and of what equals it the first few. Each warp has a piece of the scores.
    u32 last = shared.all ? 0 : shared.prefix;
    int wanted = shared.all ? 0 : shared.wanted;
    int each = ((n + PICK_WARPS - 1) / PICK_WARPS + WARP - 1) / WARP * WARP;
    int begin = warp * each, end = begin + each < n ? begin + each : n;
    int above = 0, equal = 0;
    for (int first = begin; first < end; first += WARP) {
        u32 key = first + lane < end ? sortable(scores[first + lane]) : 0;
        above += __popc(__ballot_sync(FULL, key > last));
        equal += __popc(__ballot_sync(FULL, key == last));
    }
    if (lane == 0) {
        shared.above[warp] = above;
        shared.equal[warp] = equal;
    }
    __syncthreads();
    int total = wanted;
    above = equal = 0;
    for (int w = 0; w < PICK_WARPS; w++) {
        if (w < warp) above += shared.above[w], equal += shared.equal[w];
        total += shared.above[w];
    }
    for (int first = begin; first < end; first += WARP) {
        u32 key = first + lane < end ? sortable(scores[first + lane]) : 0;
        u32 are_above = __ballot_sync(FULL, key > last), are_equal = __ballot_sync(FULL, key == last);
        u32 before = (1u << lane) - 1;
        int my_equal = equal + __popc(are_equal & before);
        int slot = above + __popc(are_above & before) + (my_equal < wanted ? my_equal : wanted);
        if (key > last || (key == last && my_equal < wanted)) take(slot, first + lane);
        above += __popc(are_above);
        equal += __popc(are_equal);
    }
    return total;
}

// The number of the vector i that a row's list names, of `per` vectors a box; with `per` 0 there is no list, and it is i.
__device__ __forceinline__ u32 number_of(const u32 *list, int per, int i) {
    return per == 0 ? (u32)i : list[i / per] * per + i % per;
}

// The numbers of the best `m` of the `n` that each row has scored, [rows, m]; `lists` is what was scored, [rows, n / per].
// A block a row.
extern "C" __global__ void __launch_bounds__(THREADS)
boxes_best(const float *scores, const u32 *lists, int per, int n, int m, u32 *best) {
    __shared__ Pick shared;
    int row = blockIdx.x;
    const u32 *list = per == 0 ? lists : lists + (long long)row * (n / per);
    best += (long long)row * m;
    int total = pick(shared, scores + (long long)row * n, n, m,
                     [=](int slot, int i) { best[slot] = number_of(list, per, i); });
    for (int slot = total + threadIdx.x; slot < m; slot += THREADS) best[slot] = NONE;
}

// The best `k` keys of each row, best first: of the `n` keys that its list of small boxes names (their tokens begin at
// `first`), and of the `rest_k` that were found among younger ones. A block a row.
extern "C" __global__ void __launch_bounds__(THREADS)
boxes_found(const float *scores, const u32 *lists, int n, int first, const float *rest_scores, const u32 *rest_tokens,
            int rest_k, int k, float *found_scores, u32 *found_tokens) {
    __shared__ Pick shared;
    __shared__ float candidate_scores[2 * MOST_FOUND];
    __shared__ u32 candidate_tokens[2 * MOST_FOUND];
    int row = blockIdx.x;
    const float *own = scores + (long long)row * n;
    const u32 *list = lists + (long long)row * (n / SMALL);
    int total = pick(shared, own, n, k, [=](int slot, int i) {
        candidate_scores[slot] = own[i];
        candidate_tokens[slot] = first + number_of(list, SMALL, i);
    });
    for (int i = threadIdx.x; i < rest_k; i += THREADS) {
        candidate_scores[total + i] = rest_scores[(long long)row * rest_k + i];
        candidate_tokens[total + i] = rest_tokens[(long long)row * rest_k + i];
    }
    __syncthreads();
    total += rest_k;
    found_scores += (long long)row * k;
    found_tokens += (long long)row * k;
    for (int i = threadIdx.x; i < total; i += THREADS) {
        float score = candidate_scores[i];
        u32 token = candidate_tokens[i];
        int rank = 0;
        for (int j = 0; j < total; j++) {
            float other = candidate_scores[j];
            u32 other_token = candidate_tokens[j];
            // Slots of the rest that found no key are the last.
            rank += other > score || (other == score && (other_token < token || (other_token == token && j < i)));
        }
        if (rank < k) {
            found_scores[rank] = score;
            found_tokens[rank] = token;
        }
    }
    for (int slot = total + threadIdx.x; slot < k; slot += THREADS) {
        found_scores[slot] = MINUS_INFINITY;
        found_tokens[slot] = NONE;
    }
}

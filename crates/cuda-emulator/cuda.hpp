// The functions of CUDA that kernels use, and the twins of what common.cuh does on a GPU by assembly; stands after fibers.hpp.

// ---- barriers and calls of a warp ----

static inline void __syncthreads(EMULATED_HERE) { emulated::wait_for_block(place); }

namespace emulated {
struct Nothing {};
static void do_nothing(Nothing **) {}

struct Shuffle {
    uint64_t value, result;
    int source;
};
static void do_shuffle(Shuffle **lanes) {
    for (int i = 0; i < WARP_SIZE; i++) lanes[i]->result = lanes[lanes[i]->source]->value;
}
template <class T> static inline T shuffle(unsigned mask, T x, int source, const char *call, Place place) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
    Shuffle me = {0, 0, source};
    memcpy(&me.value, &x, sizeof x);
    together<Shuffle, do_shuffle>(mask, me, call, place);
    memcpy(&x, &me.result, sizeof x);
    return x;
}

struct Vote {
    bool mine;
    unsigned all;
};
static void do_vote(Vote **lanes) {
    unsigned all = 0;
    for (int i = 0; i < WARP_SIZE; i++) all |= (unsigned)lanes[i]->mine << i;
    for (int i = 0; i < WARP_SIZE; i++) lanes[i]->all = all;
}
static inline unsigned vote(unsigned mask, bool mine, const char *call, Place place) {
    Vote me = {mine, 0};
    together<Vote, do_vote>(mask, me, call, place);
    return me.all;
}
} // namespace emulated

static inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATED_HERE) {
    emulated::Nothing me;
    emulated::together<emulated::Nothing, emulated::do_nothing>(mask, me, "__syncwarp", place);
}
template <class T> static inline T __shfl_sync(unsigned mask, T x, int from, int width = 32, EMULATED_HERE) {
    int lane = emulated::current->lane;
    return emulated::shuffle(mask, x, (lane & ~(width - 1)) | (from & (width - 1)), "__shfl_sync", place);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, EMULATED_HERE) {
    int lane = emulated::current->lane, from = lane - (int)by;
    return emulated::shuffle(mask, x, from < (lane & ~(width - 1)) ? lane : from, "__shfl_up_sync", place);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32, EMULATED_HERE) {
    int lane = emulated::current->lane, from = lane + (int)by;
    return emulated::shuffle(mask, x, from > (lane | (width - 1)) ? lane : from, "__shfl_down_sync", place);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int by, int width = 32, EMULATED_HERE) {
    int lane = emulated::current->lane, from = lane ^ by;
    return emulated::shuffle(mask, x, from > (lane | (width - 1)) ? lane : from, "__shfl_xor_sync", place);
}
static inline unsigned __ballot_sync(unsigned mask, int is, EMULATED_HERE) {
    return emulated::vote(mask, is != 0, "__ballot_sync", place);
}
static inline int __any_sync(unsigned mask, int is, EMULATED_HERE) {
    return emulated::vote(mask, is != 0, "__any_sync", place) != 0;
}
static inline int __all_sync(unsigned mask, int is, EMULATED_HERE) {
    return emulated::vote(mask, is != 0, "__all_sync", place) == 0xffffffffu;
}

// ---- tensor cores and copies ----

static inline float emulated_half_to_float(unsigned short x) {
    // The exponent is rebased by a product, which is exact for the smallest numbers too.
    uint32_t bits = (uint32_t)(x & 0x7fff) << 13;
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude *= 0x1p112f;
    memcpy(&bits, &magnitude, 4);
    if ((x & 0x7fff) >= 0x7c00) bits |= 0x7f800000;
    bits |= (uint32_t)(x & 0x8000) << 16;
    memcpy(&magnitude, &bits, 4);
    return magnitude;
}

static inline unsigned short emulated_half_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff; // as cvt.rn.f16.f32 has it
    if (magnitude >= 0x477ff000) return (unsigned short)(sign | 0x7c00); // 65520 and more
    if (magnitude < 0x38800000) {
        // Below 2^-14: adding 0.5 leaves multiples of 2^-24, rounded to nearest even by the sum itself.
        float small;
        memcpy(&small, &magnitude, 4);
        small += 0.5f;
        memcpy(&magnitude, &small, 4);
        return (unsigned short)(sign | (magnitude - 0x3f000000));
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (unsigned short)(sign | ((magnitude - 0x38000000) >> 13));
}

namespace emulated {
// The two elements of a register.
static inline void parts(unsigned bits, float *first, float *second) {
#if ELEMENT == 1
    *first = emulated_half_to_float((unsigned short)bits);
    *second = emulated_half_to_float((unsigned short)(bits >> 16));
#else
    unsigned low = bits << 16, high = bits & 0xffff0000u;
    memcpy(first, &low, 4);
    memcpy(second, &high, 4);
#endif
}

struct Mma {
    float *d;
    const unsigned *a, *b;
};
typedef float Four __attribute__((vector_size(16))); // what every machine has

static void do_mma(Mma **lanes) {
    float a[16][16];
    alignas(16) float b[16][8], d[16][8];
    for (int lane = 0; lane < WARP_SIZE; lane++) {
        const Mma &m = *lanes[lane];
        int r = lane / 4, c = lane % 4 * 2;
        parts(m.a[0], &a[r][c], &a[r][c + 1]);
        parts(m.a[1], &a[r + 8][c], &a[r + 8][c + 1]);
        parts(m.a[2], &a[r][c + 8], &a[r][c + 9]);
        parts(m.a[3], &a[r + 8][c + 8], &a[r + 8][c + 9]);
        parts(m.b[0], &b[c][r], &b[c + 1][r]);
        parts(m.b[1], &b[c + 8][r], &b[c + 9][r]);
        memcpy(&d[r][c], m.d, 8);
        memcpy(&d[r + 8][c], m.d + 2, 8);
    }
    for (int i = 0; i < 16; i++) {
        Four *sums = (Four *)d[i], low = sums[0], high = sums[1];
        for (int k = 0; k < 16; k++) {
            const Four *row = (const Four *)b[k];
            low += a[i][k] * row[0];
            high += a[i][k] * row[1];
        }
        sums[0] = low;
        sums[1] = high;
    }
    for (int lane = 0; lane < WARP_SIZE; lane++) {
        int r = lane / 4, c = lane % 4 * 2;
        memcpy(lanes[lane]->d, &d[r][c], 8);
        memcpy(lanes[lane]->d + 2, &d[r + 8][c], 8);
    }
}

struct Load {
    unsigned *to;
    const void *row;
};
template <int N, bool TRANSPOSED> static void do_load(Load **lanes) {
    for (int lane = 0; lane < WARP_SIZE; lane++) {
        for (int j = 0; j < N; j++) {
            unsigned low, high;
            if (TRANSPOSED) {
                low = ((const unsigned short *)lanes[j * 8 + lane % 4 * 2]->row)[lane / 4];
                high = ((const unsigned short *)lanes[j * 8 + lane % 4 * 2 + 1]->row)[lane / 4];
            } else {
                const unsigned short *row = (const unsigned short *)lanes[j * 8 + lane / 4]->row + lane % 4 * 2;
                low = row[0];
                high = row[1];
            }
            lanes[lane]->to[j] = low | high << 16;
        }
    }
}
template <int N, bool TRANSPOSED> static inline void load(unsigned *to, const void *row, Place place) {
    // The addresses of the other lanes are not looked at.
    if (current->lane < 8 * N) check_shared(row, 16, "load_matrices", place);
    Load me = {to, row};
    together<Load, do_load<N, TRANSPOSED>>(0xffffffffu, me, "load_matrices", place);
}
} // namespace emulated

static inline void emulated_mma(float d[4], const unsigned a[4], const unsigned b[2], EMULATED_HERE) {
    emulated::Mma me = {d, a, b};
    emulated::together<emulated::Mma, emulated::do_mma>(0xffffffffu, me, "mma", place);
}
static inline void emulated_load_matrices_4(unsigned r[4], const void *row, EMULATED_HERE) {
    emulated::load<4, false>(r, row, place);
}
static inline void emulated_load_matrices_2(unsigned r[2], const void *row, EMULATED_HERE) {
    emulated::load<2, false>(r, row, place);
}
static inline void emulated_load_matrices_2_transposed(unsigned r[2], const void *row, EMULATED_HERE) {
    emulated::load<2, true>(r, row, place);
}

// The copies of half the threads (with seed 0, of all) happen as late as they may, at the wait; those of the others at once or
// at any later call: so both show what is missing, a wait or a barrier before the copy.
static inline void emulated_copy_async_16(void *to, const void *from, bool is_there, EMULATED_HERE) {
    using namespace emulated;
    check_shared(to, 16, "copy_async_16", place);
    const char *wrong = (uintptr_t)from % 16 != 0 ? "from no boundary of 16 bytes" : "shared memory";
    if ((uintptr_t)from % 16 != 0 || (is_there && is_shared(from, 16))) {
        fail("copy_async_16 (%s:%d): thread %u reads %s", place.file, place.line, threadIdx.x, wrong);
    }
    Fiber *me = current;
    if (me->copies == MOST_COPIES) {
        fail("copy_async_16 (%s:%d): thread %u has %d copies under way", place.file, place.line, threadIdx.x, MOST_COPIES);
    }
    me->queue[(me->first + me->copies++) % MOST_COPIES] = {to, is_there ? from : nullptr, me->group};
    if (!me->is_late && draw() % 4 == 0) carry_out(me);
}
static inline void emulated_copy_async_commit() { emulated::current->group++; }
static inline void emulated_copy_async_wait(int n) {
    using namespace emulated;
    Fiber *me = current;
    while (me->copies > 0 && me->queue[me->first].group < me->group - n) carry_out(me);
    asm volatile("" : : : "memory");
}

// ---- atomics ----

namespace emulated {
template <class T> constexpr bool is_integer = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;
}
#define EMULATED_ATOMIC(name, result)                                                                \
    template <class T> static inline T name(T *at, std::common_type_t<T> x) {                        \
        static_assert(emulated::is_integer<T>, #name " is for int, unsigned and unsigned long long"); \
        T old = *at;                                                                                 \
        *at = (result);                                                                              \
        return old;                                                                                  \
    }
EMULATED_ATOMIC(atomicAdd, old + x)
EMULATED_ATOMIC(atomicMax, old > x ? old : x)
EMULATED_ATOMIC(atomicMin, old < x ? old : x)
EMULATED_ATOMIC(atomicOr, old | x)
EMULATED_ATOMIC(atomicAnd, old & x)
EMULATED_ATOMIC(atomicExch, x)
template <class T> static inline T atomicCAS(T *at, std::common_type_t<T> expected, std::common_type_t<T> x) {
    static_assert(emulated::is_integer<T>, "atomicCAS is for int, unsigned and unsigned long long");
    T old = *at;
    if (old == expected) *at = x;
    return old;
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}
[[noreturn]] static inline void __trap(EMULATED_HERE) { emulated::fail("thread %u traps (%s:%d)", threadIdx.x, place.file, place.line); }

// ---- numbers ----

namespace emulated {
template <class To, class From> static inline To same_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
} // namespace emulated
static inline float __int_as_float(int x) { return emulated::same_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulated::same_bits<float>(x); }
static inline int __float_as_int(float x) { return emulated::same_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulated::same_bits<unsigned>(x); }
static inline long long __double_as_longlong(double x) { return emulated::same_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulated::same_bits<double>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
static inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T> static inline T __ldg(const T *at) { return *at; }
static inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += (int)(int8_t)(a >> 8 * i) * (int)(int8_t)(b >> 8 * i);
    return sum;
}
template <class T> static inline std::enable_if_t<std::is_arithmetic_v<T>, T> min(T a, T b) { return b < a ? b : a; }
template <class T> static inline std::enable_if_t<std::is_arithmetic_v<T>, T> max(T a, T b) { return a < b ? b : a; }
#ifdef __APPLE__
static inline void sincos(double x, double *s, double *c) { __sincos(x, s, c); }
#endif

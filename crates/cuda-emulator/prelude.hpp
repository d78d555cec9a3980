// What stands before kernel text when it is compiled for the CPU: the CUDA that kernels use, in plain C++17.
//
// A block runs on one thread of the machine. Each of its threads is a fiber with a stack of its own. A fiber runs until it
// waits: at a warp-wide call for the other lanes, at __syncthreads for the other threads. The last lane to arrive at a
// warp-wide call does the work of all 32. Which lane and which warp go on first is drawn by a seed.

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

// ---- words of the language ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#ifdef __APPLE__
#define __shared__ __attribute__((section("__DATA,emushared"))) static
#else
#define __shared__ __attribute__((section("emushared"))) static
#endif

struct uint3 {
    unsigned x, y, z;
};
#define EMULATED_VECTOR(T, name)                                                                     \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; };                                             \
    struct __align__(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; };                 \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR(int, int)
EMULATED_VECTOR(unsigned, uint)
EMULATED_VECTOR(float, float)
EMULATED_VECTOR(short, short)
EMULATED_VECTOR(unsigned short, ushort)
EMULATED_VECTOR(double, double)
EMULATED_VECTOR(long long, longlong)
EMULATED_VECTOR(unsigned long long, ulonglong)

// ---- fibers ----

namespace emulated {

constexpr int WARP_SIZE = 32;
constexpr int MOST_THREADS = 1024;
constexpr int MOST_COPIES = 512;
constexpr uint64_t CANARY = 0x5ca1ab1e0ddba11ull;

struct Copy {
    void *to;
    const void *from;
    long long group;
};

enum State : uint8_t { RUNNING, TOGETHER, BARRIER, RETURNED };

struct Warp {
    int position;        // where in the order the lane that runs stands
    unsigned base, step; // the order: lane (base + step * position) % 32
    int arrived;         // lanes at the warp-wide call
    void (*work)(void **);
    const char *call;
    void *lanes[WARP_SIZE];
};

struct Fiber {
    uint3 thread;
    int lane;
    State state;
    Warp *warp;
    void *stack; // its pointer, while the fiber does not run
    long long group; // copies of groups below it are committed
    int first, copies;
    Copy queue[MOST_COPIES];
};

// What the driver says of one block.
struct Order {
    uint3 block, grid;
    unsigned threads;
    uint64_t seed;
    char *shared; // dynamic, followed by as many bytes of 0xFD as `guard` says
    uint64_t shared_bytes, guard;
    char *stacks;
    uint64_t stack_bytes; // of one fiber
    const uint64_t *args;
    char *failure;
    uint64_t failure_bytes;
};

typedef void (*Entry)(const uint64_t *args);

// Not static, so that the compiler must take them for changed after every switch.
Fiber fibers[MOST_THREADS];
Warp warps[MOST_THREADS / WARP_SIZE];
Fiber *current;
const Order *order;
Entry entry;
void *outside;   // the stack pointer of what called run()
uint64_t random_state;
int n_ready, n_warps;
int ready[MOST_THREADS / WARP_SIZE];
bool failed;

} // namespace emulated

uint3 blockIdx, blockDim, gridDim;
#define threadIdx (emulated::current->thread)
#define DYNAMIC_SHARED(name) unsigned char *const name = (unsigned char *)emulated::order->shared

// Of a library that has no shared arrays the section would not exist.
__attribute__((used)) __shared__ char emulated_shared_mark[16];
#ifdef __APPLE__
extern char emulated_shared_start[] asm("section$start$__DATA$emushared");
extern char emulated_shared_end[] asm("section$end$__DATA$emushared");
#else
extern "C" __attribute__((visibility("hidden"))) char __start_emushared[], __stop_emushared[];
#define emulated_shared_start __start_emushared
#define emulated_shared_end __stop_emushared
#endif

// Stores the stack pointer at `from` and goes on with the stack `to`.
extern "C" void emulated_switch(void **from, void *to) asm("emulated_switch");
#if defined(__x86_64__)
asm(R"(
.text
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 2
emulated_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

namespace emulated {

// splitmix64
static uint64_t draw() {
    uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Gives the block up, with a text for the driver.
[[noreturn]] __attribute__((format(printf, 1, 2), noinline)) static void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(order->failure, order->failure_bytes, format, list);
    va_end(list);
    failed = true;
    void *gone;
    emulated_switch(&gone, outside);
    __builtin_unreachable();
}

static void go_to(Fiber *next) {
    Fiber *me = current;
    if (next == me) return;
    current = next;
    emulated_switch(&me->stack, next->stack);
}

static Fiber *lane_at(Warp *warp, int position) {
    int lane = (int)((warp->base + warp->step * (unsigned)position) % WARP_SIZE);
    return &fibers[(warp - warps) * WARP_SIZE + lane];
}

// A new order of the lanes of a warp, all of which may go on. Lane of the first that has not returned, if any.
static Fiber *begin(Warp *warp) {
    warp->base = 0;
    warp->step = 1;
    if (order->seed != 0) {
        uint64_t bits = draw();
        warp->base = bits % WARP_SIZE;
        warp->step = bits / WARP_SIZE % WARP_SIZE | 1;
    }
    warp->arrived = 0;
    warp->position = -1;
    while (++warp->position < WARP_SIZE) {
        Fiber *fiber = lane_at(warp, warp->position);
        if (fiber->state != RETURNED) return fiber;
    }
    return nullptr;
}

// The fiber that goes on in a warp that waits for nothing.
static Fiber *resume(Warp *warp) { return lane_at(warp, warp->position); }

static Fiber *any_warp() {
    return resume(&warps[ready[order->seed == 0 ? 0 : draw() % n_ready]]);
}

static void fail_apart(Warp *warp) {
    const Fiber *lanes = &fibers[(warp - warps) * WARP_SIZE];
    unsigned at[4] = {0, 0, 0, 0};
    for (int i = 0; i < WARP_SIZE; i++) at[lanes[i].state] |= 1u << i;
    fail("deadlock: of warp %d the lanes %#x wait at %s, %#x at __syncthreads, and %#x have returned", (int)(warp - warps),
         at[TOGETHER], warp->call, at[BARRIER], at[RETURNED]);
}

// The running fiber waits in `state` (or has returned): goes on with another, and comes back when the wait is over.
static void leave(State state) {
    Fiber *me = current;
    Warp *warp = me->warp;
    me->state = state;
    while (++warp->position < WARP_SIZE) {
        Fiber *fiber = lane_at(warp, warp->position);
        if (fiber->state != RETURNED) return go_to(fiber);
    }
    if (warp->arrived > 0) fail_apart(warp);
    // The warp has no lane left to run: those that have not returned are at the barrier.
    for (int i = 0; i < n_ready; i++) {
        if (&warps[ready[i]] == warp) {
            ready[i] = ready[--n_ready];
            break;
        }
    }
    if (n_ready == 0) {
        for (int i = 0; i < n_warps; i++) {
            if (begin(&warps[i])) ready[n_ready++] = i;
        }
        if (n_ready == 0) {
            void *gone;
            emulated_switch(&gone, outside);
        }
    }
    go_to(any_warp());
}

// All lanes of the warp call with an argument each; `work` gets them all.
__attribute__((noinline)) static void meet(void (*work)(void **), void *mine, const char *call) {
    Fiber *me = current;
    Warp *warp = me->warp;
    if (warp->arrived == 0) {
        warp->work = work;
        warp->call = call;
    } else if (warp->work != work) {
        fail("lane %d of warp %d calls %s where others call %s", me->lane, (int)(warp - warps), call, warp->call);
    }
    warp->lanes[me->lane] = mine;
    if (++warp->arrived < WARP_SIZE) return leave(TOGETHER);
    work(warp->lanes);
    Fiber *next = begin(warp);
    // Now and then another warp goes on.
    if (order->seed != 0 && n_ready > 1 && draw() % 16 == 0) next = any_warp();
    me->state = TOGETHER;
    go_to(next);
}

// `me` is what the lane gives and gets; `Work` is a function of the arguments of all lanes.
template <class Lane, void (*Work)(Lane **)> static inline void together(unsigned mask, Lane &me, const char *call) {
    if (mask != 0xffffffffu) fail("%s with the mask %#x: all lanes must be named", call, mask);
    meet([](void **lanes) { Work((Lane **)lanes); }, &me, call);
    asm volatile("" : : : "memory");
}

static bool is_shared(const void *at, size_t bytes) {
    const char *p = (const char *)at;
    return (p >= emulated_shared_start && p + bytes <= emulated_shared_end) ||
           (p >= order->shared && p + bytes <= order->shared + order->shared_bytes);
}

static void check_shared(const void *at, size_t bytes, const char *call) {
    if ((uintptr_t)at % 16 != 0) fail("%s: thread %u gives an address that is not on a boundary of 16 bytes", call, threadIdx.x);
    if (!is_shared(at, bytes)) fail("%s: thread %u gives an address outside shared memory", call, threadIdx.x);
}

// Where fibers start; comes back never.
static void start() {
    entry(order->args);
    leave(RETURNED);
    __builtin_unreachable();
}

static void prepare(Fiber *fiber, unsigned index) {
    fiber->thread = {index, 0, 0};
    fiber->lane = (int)(index % WARP_SIZE);
    fiber->warp = &warps[index / WARP_SIZE];
    fiber->state = RUNNING;
    fiber->group = 0;
    fiber->first = fiber->copies = 0;
    // Stacks start on differing lines, or those of a warp would share few sets of the cache.
    char *bottom = order->stacks + index * order->stack_bytes;
    memcpy(bottom, &CANARY, sizeof CANARY);
    uintptr_t top = (uintptr_t)(bottom + order->stack_bytes - (index * 5 % 61) * 64) & ~(uintptr_t)63;
#if defined(__x86_64__)
    void **stack = (void **)top - 8;
    memset(stack, 0, 64);
    stack[6] = (void *)start; // where the switch returns to, with a stack as after a call
#else
    void **stack = (void **)top - 20;
    memset(stack, 0, 160);
    stack[11] = (void *)start;
#endif
    fiber->stack = stack;
}

static int run_block(Entry kernel, const Order *its) {
    order = its;
    entry = kernel;
    blockIdx = its->block;
    blockDim = {its->threads, 1, 1};
    gridDim = its->grid;
    random_state = its->seed;
    failed = false;
    memset(emulated_shared_start, 0xff, (size_t)(emulated_shared_end - emulated_shared_start));
    memset(its->shared, 0xff, its->shared_bytes);
    memset(its->shared + its->shared_bytes, 0xfd, its->guard);
    for (unsigned i = 0; i < its->threads; i++) prepare(&fibers[i], i);
    n_ready = n_warps = (int)(its->threads / WARP_SIZE);
    for (int i = 0; i < n_warps; i++) {
        ready[i] = i;
        begin(&warps[i]);
    }
    current = any_warp();
    emulated_switch(&outside, current->stack);
    if (failed) return 1;
    for (unsigned i = 0; i < its->threads; i++) {
        if (memcmp(its->stacks + i * its->stack_bytes, &CANARY, sizeof CANARY) != 0) {
            snprintf(its->failure, its->failure_bytes, "thread %u needs a stack of more than %llu bytes", i,
                     (unsigned long long)its->stack_bytes);
            return 1;
        }
    }
    for (uint64_t i = 0; i < its->guard; i++) {
        if ((unsigned char)its->shared[its->shared_bytes + i] != 0xfd) {
            snprintf(its->failure, its->failure_bytes, "it writes byte %llu of %llu bytes of dynamic shared memory",
                     (unsigned long long)(its->shared_bytes + i), (unsigned long long)its->shared_bytes);
            return 1;
        }
    }
    return 0;
}

// ---- the table of kernels ----

struct Kernel {
    const char *name;
    const char *parameters; // a letter each
    Entry entry;
    int (*run)(Entry, const Order *);
};

// Stands for a kernel that the preprocessor has left out.
struct Absent {};

template <class T> constexpr char letter() {
    if constexpr (std::is_pointer_v<T>) return 'p';
    else if constexpr (std::is_same_v<T, int>) return 'i';
    else if constexpr (std::is_same_v<T, long long>) return 'l';
    else {
        static_assert(std::is_same_v<T, float>, "parameters of kernels are pointers, int, long long and float");
        return 'f';
    }
}

template <class T> static T value(const uint64_t *slot) {
    T value;
    memcpy(&value, slot, sizeof value);
    return value;
}

template <auto Function> struct Describe;
template <class... P, void (*Function)(P...)> struct Describe<Function> {
    static constexpr char parameters[] = {letter<std::remove_cv_t<P>>()..., 0};
    template <size_t... I> static void unpack(const uint64_t *args, std::index_sequence<I...>) {
        Function(value<std::remove_cv_t<P>>(args + I)...);
    }
    static void call(const uint64_t *args) { unpack(args, std::index_sequence_for<P...>()); }
    static constexpr Kernel kernel(const char *name) { return {name, parameters, call, run_block}; }
};
template <Absent *Nothing> struct Describe<Nothing> {
    static constexpr Kernel kernel(const char *name) { return {name, nullptr, nullptr, nullptr}; }
};

} // namespace emulated

// ---- barriers and calls of a warp ----

static inline void __syncthreads() {
    emulated::leave(emulated::BARRIER);
    asm volatile("" : : : "memory");
}

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
template <class T> static inline T shuffle(unsigned mask, T x, int source, const char *call) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
    Shuffle me = {0, 0, source};
    memcpy(&me.value, &x, sizeof x);
    together<Shuffle, do_shuffle>(mask, me, call);
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
static inline unsigned vote(unsigned mask, bool mine, const char *call) {
    Vote me = {mine, 0};
    together<Vote, do_vote>(mask, me, call);
    return me.all;
}
} // namespace emulated

static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulated::Nothing me;
    emulated::together<emulated::Nothing, emulated::do_nothing>(mask, me, "__syncwarp");
}
template <class T> static inline T __shfl_sync(unsigned mask, T x, int from, int width = 32) {
    int lane = emulated::current->lane;
    return emulated::shuffle(mask, x, (lane & ~(width - 1)) | (from & (width - 1)), "__shfl_sync");
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32) {
    int lane = emulated::current->lane, from = lane - (int)by;
    return emulated::shuffle(mask, x, from < (lane & ~(width - 1)) ? lane : from, "__shfl_up_sync");
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32) {
    int lane = emulated::current->lane, from = lane + (int)by;
    return emulated::shuffle(mask, x, from > (lane | (width - 1)) ? lane : from, "__shfl_down_sync");
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int by, int width = 32) {
    int lane = emulated::current->lane, from = lane ^ by;
    return emulated::shuffle(mask, x, from > (lane | (width - 1)) ? lane : from, "__shfl_xor_sync");
}
static inline unsigned __ballot_sync(unsigned mask, int is) { return emulated::vote(mask, is != 0, "__ballot_sync"); }
static inline int __any_sync(unsigned mask, int is) { return emulated::vote(mask, is != 0, "__any_sync") != 0; }
static inline int __all_sync(unsigned mask, int is) { return emulated::vote(mask, is != 0, "__all_sync") == 0xffffffffu; }

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
static inline float part(unsigned bits) {
#if ELEMENT == 1
    return emulated_half_to_float((unsigned short)bits);
#else
    bits <<= 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
#endif
}

struct Mma {
    float *d;
    const unsigned *a, *b;
};
static void do_mma(Mma **lanes) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < WARP_SIZE; lane++) {
        const Mma &m = *lanes[lane];
        int r = lane / 4, c = lane % 4 * 2;
        for (int half = 0; half < 2; half++) {
            int shift = half * 16;
            a[r][c + half] = part(m.a[0] >> shift & 0xffff);
            a[r + 8][c + half] = part(m.a[1] >> shift & 0xffff);
            a[r][c + 8 + half] = part(m.a[2] >> shift & 0xffff);
            a[r + 8][c + 8 + half] = part(m.a[3] >> shift & 0xffff);
            b[c + half][r] = part(m.b[0] >> shift & 0xffff);
            b[c + 8 + half][r] = part(m.b[1] >> shift & 0xffff);
            d[r][c + half] = m.d[half];
            d[r + 8][c + half] = m.d[2 + half];
        }
    }
    for (int i = 0; i < 16; i++) {
        float sum[8];
        for (int j = 0; j < 8; j++) sum[j] = d[i][j];
        for (int k = 0; k < 16; k++) {
            for (int j = 0; j < 8; j++) sum[j] += a[i][k] * b[k][j];
        }
        for (int j = 0; j < 8; j++) d[i][j] = sum[j];
    }
    for (int lane = 0; lane < WARP_SIZE; lane++) {
        int r = lane / 4, c = lane % 4 * 2;
        for (int half = 0; half < 2; half++) {
            lanes[lane]->d[half] = d[r][c + half];
            lanes[lane]->d[2 + half] = d[r + 8][c + half];
        }
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
template <int N, bool TRANSPOSED> static inline void load(unsigned *to, const void *row) {
    // The addresses of the other lanes are not looked at.
    if (current->lane < 8 * N) check_shared(row, 16, "load_matrices");
    Load me = {to, row};
    together<Load, do_load<N, TRANSPOSED>>(0xffffffffu, me, "load_matrices");
}

static inline void carry_out(const Copy &copy) {
    if (copy.from) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
}
} // namespace emulated

static inline void emulated_mma(float d[4], const unsigned a[4], const unsigned b[2]) {
    emulated::Mma me = {d, a, b};
    emulated::together<emulated::Mma, emulated::do_mma>(0xffffffffu, me, "mma");
}
static inline void emulated_load_matrices_4(unsigned r[4], const void *row) { emulated::load<4, false>(r, row); }
static inline void emulated_load_matrices_2(unsigned r[2], const void *row) { emulated::load<2, false>(r, row); }
static inline void emulated_load_matrices_2_transposed(unsigned r[2], const void *row) { emulated::load<2, true>(r, row); }

// Copies happen as late as they may, at the wait, or now and then (not with seed 0) at once: both show what is missing, a
// wait or a barrier.
static inline void emulated_copy_async_16(void *to, const void *from, bool is_there) {
    using namespace emulated;
    check_shared(to, 16, "copy_async_16");
    if ((uintptr_t)from % 16 != 0) fail("copy_async_16: thread %u reads from no boundary of 16 bytes", threadIdx.x);
    if (is_there && is_shared(from, 16)) fail("copy_async_16: thread %u reads shared memory", threadIdx.x);
    Fiber *me = current;
    Copy copy = {to, is_there ? from : nullptr, me->group};
    if (order->seed != 0 && draw() % 4 == 0) return carry_out(copy);
    if (me->copies == MOST_COPIES) fail("copy_async_16: thread %u has %d copies under way", threadIdx.x, MOST_COPIES);
    me->queue[(me->first + me->copies++) % MOST_COPIES] = copy;
}
static inline void emulated_copy_async_commit() { emulated::current->group++; }
static inline void emulated_copy_async_wait(int n) {
    using namespace emulated;
    Fiber *me = current;
    while (me->copies > 0 && me->queue[me->first].group < me->group - n) {
        carry_out(me->queue[me->first]);
        me->first = (me->first + 1) % MOST_COPIES;
        me->copies--;
    }
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
[[noreturn]] static inline void __trap() { emulated::fail("thread %u traps", threadIdx.x); }

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

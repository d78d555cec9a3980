// What stands before kernel text when it is compiled for the CPU: words of CUDA and threads, in plain C++17.
//
// A block runs on one thread of the machine. Each of its threads is a fiber with a stack of its own. A fiber runs until it
// waits: at a warp-wide call for the other lanes, at __syncthreads for the other threads. The last lane to arrive at a
// warp-wide call does the work of all 32. Which lane and which warp go on first is drawn by a seed.

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <math.h>
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
// Blocks run one after another, so that one array for all of them will do. What has no initial value lies in .bss; the
// state of the emulator is kept out of it, so that .bss is the shared memory. `used` keeps the compiler from knowing better
// than the poison what is in there.
#define __shared__ __attribute__((used)) static
#ifdef __APPLE__
#define EMULATED_STATE __attribute__((section("__DATA,emustate")))
#else
#define EMULATED_STATE __attribute__((section("emustate")))
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

// Where a kernel calls: lanes meet at one place of the text.
struct Place {
    const char *file;
    int line;
};
#define EMULATED_HERE emulated::Place place = {__builtin_FILE(), __builtin_LINE()}

enum State : uint8_t { RUNNING, TOGETHER, BARRIER, RETURNED };

struct Warp {
    int position;        // where in the order the lane that runs stands
    unsigned base, step; // the order: lane (base + step * position) % 32
    int arrived;         // lanes at the warp-wide call
    void (*work)(void **);
    const char *call;
    Place place;   // of the warp-wide call
    Place barrier; // where lanes wait at __syncthreads; line 0 if none does
    void *lanes[WARP_SIZE];
};

struct Fiber {
    uint3 thread;
    int lane;
    State state;
    Warp *warp;
    void *stack; // its pointer, while the fiber does not run
    long long group; // copies of groups below it are committed
    bool is_late; // no copy happens before it is waited for
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
    uint64_t stack_bytes; // of one fiber, with its state
    const uint64_t *args;
    char *failure;
    uint64_t failure_bytes;
};

typedef void (*Entry)(const uint64_t *args);

// Not static, so that the compiler must take them for changed after every switch.
EMULATED_STATE Warp warps[MOST_THREADS / WARP_SIZE] = {};
EMULATED_STATE Fiber *current = nullptr;
EMULATED_STATE const Order *order = nullptr;
EMULATED_STATE Entry entry = nullptr;
EMULATED_STATE void *outside = nullptr; // the stack pointer of what called run_block()
EMULATED_STATE uint64_t random_state = 0;
EMULATED_STATE int n_ready = 0, n_warps = 0;
EMULATED_STATE int ready[MOST_THREADS / WARP_SIZE] = {};
EMULATED_STATE bool failed = false;

} // namespace emulated

EMULATED_STATE uint3 blockIdx = {}, blockDim = {}, gridDim = {};
#define threadIdx (emulated::current->thread)
#define DYNAMIC_SHARED(name) unsigned char *const name = (unsigned char *)emulated::order->shared

#ifdef __APPLE__
extern char emulated_shared_start[] asm("section$start$__DATA$__bss");
extern char emulated_shared_end[] asm("section$end$__DATA$__bss");
#else
extern "C" __attribute__((visibility("hidden"))) char __bss_start[], _end[];
#define emulated_shared_start __bss_start
#define emulated_shared_end _end
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

// A fiber's state lies at the upper end of its stack.
static Fiber *fiber(unsigned index) {
    return (Fiber *)(((uintptr_t)order->stacks + (index + 1) * order->stack_bytes - sizeof(Fiber)) & ~(uintptr_t)63);
}

static Fiber *lane_at(Warp *warp, int position) {
    int lane = (int)((warp->base + warp->step * (unsigned)position) % WARP_SIZE);
    return fiber((unsigned)((warp - warps) * WARP_SIZE + lane));
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
    warp->barrier.line = 0;
    warp->position = -1;
    while (++warp->position < WARP_SIZE) {
        Fiber *lane = lane_at(warp, warp->position);
        if (lane->state != RETURNED) return lane;
    }
    return nullptr;
}

// The fiber that goes on in a warp that waits for nothing.
static Fiber *resume(Warp *warp) { return lane_at(warp, warp->position); }

static Fiber *any_warp() {
    return resume(&warps[ready[order->seed == 0 ? 0 : draw() % n_ready]]);
}

static void fail_apart(Warp *warp) {
    unsigned at[4] = {0, 0, 0, 0};
    for (int i = 0; i < WARP_SIZE; i++) at[fiber((unsigned)((warp - warps) * WARP_SIZE + i))->state] |= 1u << i;
    fail("deadlock: of warp %d the lanes %#x wait at %s (%s:%d), %#x at __syncthreads (line %d), and %#x have returned",
         (int)(warp - warps), at[TOGETHER], warp->call, warp->place.file, warp->place.line, at[BARRIER], warp->barrier.line,
         at[RETURNED]);
}

static char *bottom(unsigned index) { return order->stacks + index * order->stack_bytes; }

static void check_stack(unsigned index) {
    if (memcmp(bottom(index), &CANARY, sizeof CANARY) == 0) return;
    fail("thread %u needs more than the %llu bytes that a stack has", index, (unsigned long long)(order->stack_bytes - sizeof(Fiber)));
}

// The oldest copy of a fiber that is under way.
static void carry_out(Fiber *of) {
    const Copy &copy = of->queue[of->first];
    if (copy.from) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
    of->first = (of->first + 1) % MOST_COPIES;
    of->copies--;
}

// The running fiber waits in `state` (or has returned): goes on with another, and comes back when the wait is over.
static void leave(State state) {
    Fiber *me = current;
    Warp *warp = me->warp;
    check_stack(me->thread.x); // before another thread's state, which lies below the stack, is read
    if (me->copies > 0 && !me->is_late && draw() % 4 == 0) carry_out(me);
    me->state = state;
    while (++warp->position < WARP_SIZE) {
        Fiber *lane = lane_at(warp, warp->position);
        if (lane->state != RETURNED) return go_to(lane);
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
__attribute__((noinline)) static void meet(void (*work)(void **), void *mine, const char *call, Place place) {
    Fiber *me = current;
    Warp *warp = me->warp;
    if (warp->arrived == 0) {
        warp->work = work;
        warp->call = call;
        warp->place = place;
    } else if (warp->work != work || warp->place.line != place.line) {
        fail("lane %d of warp %d calls %s (%s:%d) where others call %s (%s:%d)", me->lane, (int)(warp - warps), call, place.file,
             place.line, warp->call, warp->place.file, warp->place.line);
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
template <class Lane, void (*Work)(Lane **)>
static inline void together(unsigned mask, Lane &me, const char *call, Place place) {
    if (mask != 0xffffffffu) fail("%s with the mask %#x (%s:%d): all lanes must be named", call, mask, place.file, place.line);
    meet([](void **lanes) { Work((Lane **)lanes); }, &me, call, place);
    asm volatile("" : : : "memory");
}

// __syncthreads
static void wait_for_block(Place place) {
    Warp *warp = current->warp;
    if (warp->barrier.line != 0 && warp->barrier.line != place.line) {
        fail("lanes of warp %d wait at __syncthreads in %s:%d and %s:%d", (int)(warp - warps), warp->barrier.file,
             warp->barrier.line, place.file, place.line);
    }
    warp->barrier = place;
    leave(BARRIER);
    asm volatile("" : : : "memory");
}

static bool is_shared(const void *at, size_t bytes) {
    const char *p = (const char *)at;
    return (p >= emulated_shared_start && p + bytes <= emulated_shared_end) ||
           (p >= order->shared && p + bytes <= order->shared + order->shared_bytes);
}

static void check_shared(const void *at, size_t bytes, const char *call, Place place) {
    const char *wrong = (uintptr_t)at % 16 != 0 ? "that is not on a boundary of 16 bytes" : "outside shared memory";
    if ((uintptr_t)at % 16 == 0 && is_shared(at, bytes)) return;
    fail("%s (%s:%d): thread %u gives an address %s", call, place.file, place.line, threadIdx.x, wrong);
}

// Where fibers start; comes back never.
static void start() {
    entry(order->args);
    leave(RETURNED);
    __builtin_unreachable();
}

static void prepare(unsigned index) {
    Fiber *me = fiber(index);
    me->thread = {index, 0, 0};
    me->lane = (int)(index % WARP_SIZE);
    me->warp = &warps[index / WARP_SIZE];
    me->state = RUNNING;
    me->group = 0;
    me->first = me->copies = 0;
    me->is_late = order->seed == 0 || draw() % 2 == 0;
    memcpy(bottom(index), &CANARY, sizeof CANARY);
    uintptr_t top = (uintptr_t)me;
#if defined(__x86_64__)
    void **stack = (void **)top - 8;
    memset(stack, 0, 64);
    stack[6] = (void *)start; // where the switch returns to, with a stack as after a call
#else
    void **stack = (void **)top - 20;
    memset(stack, 0, 160);
    stack[11] = (void *)start;
#endif
    me->stack = stack;
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
    for (unsigned i = 0; i < its->threads; i++) prepare(i);
    n_ready = n_warps = (int)(its->threads / WARP_SIZE);
    for (int i = 0; i < n_warps; i++) {
        ready[i] = i;
        begin(&warps[i]);
    }
    current = any_warp();
    emulated_switch(&outside, current->stack);
    if (failed) return 1;
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

// What all families of kernels share. It stands before the text of each family; no header is included, so that NVRTC needs
// no toolkit. Macros given from outside:
//   ELEMENT   type of cached keys and values and of dense inputs: 0 bfloat16, 1 half, 2 float
//   HEAD_DIM  length of one head's vector, where a family needs it
// The host fills in PageEntry (src/paged.rs) and Segment (src/segments.rs).

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define FULL 0xffffffffu
#define NONE 0xffffffffu
#define WARP 32
#define PAGE 1024
// Within a kernel: the dynamic shared memory of its block, as an array of bytes.
#ifndef EMULATED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif
#define MINUS_INFINITY __int_as_float(0xff800000)

// ---- elements ----

#if ELEMENT == 2
typedef float element;
#define PARTS 3
#else
typedef u16 element;
#define PARTS 1
#endif

__device__ __forceinline__ float bf16_to_float(u16 x) { return __uint_as_float((u32)x << 16); }

// To nearest, ties to even; what is no number stays none.
__device__ __forceinline__ u16 bf16_from_float(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#ifdef EMULATED
#define half_to_float emulated_half_to_float
#define half_from_float emulated_half_from_float
#else
__device__ __forceinline__ float half_to_float(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ __forceinline__ u16 half_from_float(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#endif

#if ELEMENT == 0
__device__ __forceinline__ float to_float(element x) { return bf16_to_float(x); }
__device__ __forceinline__ element from_float(float x) { return bf16_from_float(x); }
#elif ELEMENT == 1
__device__ __forceinline__ float to_float(element x) { return half_to_float(x); }
__device__ __forceinline__ element from_float(float x) { return half_from_float(x); }
#else
__device__ __forceinline__ float to_float(element x) { return x; }
__device__ __forceinline__ element from_float(float x) { return x; }
#endif

// Two elements in one register, the first in the low half: what a tensor core takes. With ELEMENT 2 these are bfloat16 parts.
__device__ __forceinline__ u32 pack(u16 low, u16 high) { return (u32)low | (u32)high << 16; }

// ---- products on tensor cores: 16 x 16 times 16 x 8 ----
//
// Fragments as PTX lays them out for mma.m16n8k16. With `lane / 4 = r` and `lane % 4 = c`:
//   A  a[0]: row r, columns 2c, 2c+1;  a[1]: row r+8;  a[2]: row r, columns 2c+8, 2c+9;  a[3]: row r+8, those columns
//   B  b[0]: rows 2c, 2c+1 of column r;  b[1]: rows 2c+8, 2c+9 of column r
//   D  d[0], d[1]: row r, columns 2c, 2c+1;  d[2], d[3]: row r+8

// Floats are three bfloat16 parts that add up to them to the last bit or two; products of parts below 2^-24 are left out.
struct FragmentA {
    u32 r[PARTS][4];
};
struct FragmentB {
    u32 r[PARTS][2];
};

#ifdef EMULATED
#define mma_16816 emulated_mma
#define load_matrices_4 emulated_load_matrices_4
#define load_matrices_2 emulated_load_matrices_2
#define load_matrices_2_transposed emulated_load_matrices_2_transposed
#define copy_async_16 emulated_copy_async_16
#define copy_async_commit emulated_copy_async_commit
#define COPY_ASYNC_WAIT(n) emulated_copy_async_wait(n)
#else
__device__ __forceinline__ void mma_16816(float d[4], const u32 a[4], const u32 b[2]) {
#if ELEMENT == 1
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// Four (or two) matrices of 8 x 8 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices_4(u32 r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void load_matrices_2(u32 r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void load_matrices_2_transposed(u32 r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// Copies 16 bytes from global to shared memory in the background; with `is_there` false it writes zeros.
__device__ __forceinline__ void copy_async_16(void *to, const void *from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(is_there ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Waits until at most n groups of copies are under way; n is a number in the text.
#define COPY_ASYNC_WAIT(n) asm volatile("cp.async.wait_group %0;" : : "n"(n) : "memory")
#endif

// d += a · b
__device__ __forceinline__ void multiply(float d[4], const FragmentA &a, const FragmentB &b) {
#if PARTS == 1
    mma_16816(d, a.r[0], b.r[0]);
#else
    // The small products first, so that they are not lost beside the large one.
    mma_16816(d, a.r[2], b.r[0]);
    mma_16816(d, a.r[0], b.r[2]);
    mma_16816(d, a.r[1], b.r[1]);
    mma_16816(d, a.r[1], b.r[0]);
    mma_16816(d, a.r[0], b.r[1]);
    mma_16816(d, a.r[0], b.r[0]);
#endif
}

#if PARTS == 3
__device__ __forceinline__ void split(float x, u16 part[3]) {
    part[0] = bf16_from_float(x);
    x -= bf16_to_float(part[0]);
    part[1] = bf16_from_float(x);
    x -= bf16_to_float(part[1]);
    part[2] = bf16_from_float(x);
}
#endif

#if PARTS == 1
// Two floats as `pack` holds two elements.
#if ELEMENT == 0 && !defined(EMULATED)
__device__ __forceinline__ u32 pack_floats(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#else
__device__ __forceinline__ u32 pack_floats(float low, float high) { return pack(from_float(low), from_float(high)); }
#endif
#endif

// One register of a fragment from two floats.
__device__ __forceinline__ void fill(u32 *of_part_0, int stride, float low, float high) {
#if PARTS == 1
    of_part_0[0] = pack_floats(low, high);
#else
    u16 l[3], h[3];
    split(low, l);
    split(high, h);
    for (int p = 0; p < 3; p++) of_part_0[p * stride] = pack(l[p], h[p]);
#endif
}

// Rows 0 to 15 and columns 0 to 15 of what starts at `tile`, in shared memory, rows `stride` elements apart. For 16-bit
// elements every row starts on a boundary of 16 bytes.
__device__ __forceinline__ void load_a(FragmentA &f, const element *tile, int stride) {
    int lane = threadIdx.x % WARP;
#if PARTS == 1
    load_matrices_4(f.r[0], tile + (lane % 16) * stride + lane / 16 * 8);
#else
    const element *at = tile + lane / 4 * stride + lane % 4 * 2;
    fill(&f.r[0][0], 4, at[0], at[1]);
    fill(&f.r[0][1], 4, at[8 * stride], at[8 * stride + 1]);
    fill(&f.r[0][2], 4, at[8], at[9]);
    fill(&f.r[0][3], 4, at[8 * stride + 8], at[8 * stride + 9]);
#endif
}

// The transpose of rows 0 to 7 (columns of B) and columns 0 to 15 (rows of B) of `tile`: keys, to be multiplied with queries.
__device__ __forceinline__ void load_b(FragmentB &f, const element *tile, int stride) {
    int lane = threadIdx.x % WARP;
#if PARTS == 1
    load_matrices_2(f.r[0], tile + (lane % 8) * stride + (lane / 8 % 2) * 8);
#else
    const element *at = tile + lane / 4 * stride + lane % 4 * 2;
    fill(&f.r[0][0], 2, at[0], at[1]);
    fill(&f.r[0][1], 2, at[8], at[9]);
#endif
}

// As load_b, for rows 0 to 7 and for rows 8 to 15.
__device__ __forceinline__ void load_b_pair(FragmentB b[2], const element *tile, int stride) {
#if PARTS == 1
    int lane = threadIdx.x % WARP;
    u32 r[4];
    load_matrices_4(r, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
    b[0].r[0][0] = r[0], b[0].r[0][1] = r[1];
    b[1].r[0][0] = r[2], b[1].r[0][1] = r[3];
#else
    load_b(b[0], tile, stride);
    load_b(b[1], tile + 8 * stride, stride);
#endif
}

// Rows 0 to 15 (rows of B) and columns 0 to 7 of `tile`: values, to be multiplied with weights.
__device__ __forceinline__ void load_b_rows(FragmentB &f, const element *tile, int stride) {
    int lane = threadIdx.x % WARP;
#if PARTS == 1
    load_matrices_2_transposed(f.r[0], tile + (lane % 16) * stride);
#else
    const element *at = tile + lane % 4 * 2 * stride + lane / 4;
    fill(&f.r[0][0], 2, at[0], at[stride]);
    fill(&f.r[0][1], 2, at[8 * stride], at[9 * stride]);
#endif
}

// ---- cached keys and values ----

// A page of PAGE tokens: `[n_kv_heads, PAGE, HEAD_DIM]` keys and as many values, on the device or in pinned host memory.
struct PageEntry {
    const element *keys;
    const element *values;
};

#ifdef HEAD_DIM
__device__ __forceinline__ const element *key_row(const PageEntry *pages, int kv_head, int token) {
    return pages[token / PAGE].keys + (kv_head * PAGE + token % PAGE) * (long long)HEAD_DIM;
}
__device__ __forceinline__ const element *value_row(const PageEntry *pages, int kv_head, int token) {
    return pages[token / PAGE].values + (kv_head * PAGE + token % PAGE) * (long long)HEAD_DIM;
}
#endif

// ---- warps ----

__device__ __forceinline__ float warp_sum(float x) {
    for (int d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(FULL, x, d);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int d = WARP / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, d));
    return x;
}

//! Tensor-core products, matrix loads and background copies, through what `common.cuh` makes of them.
#![allow(missing_docs)]

mod common;

use common::{emulator, run};
use half::{bf16, f16};
use reattention_cuda::driver::{Block, CudaError, Driver};
use std::sync::Arc;

/// Numbers between -2 and 2 with many bits.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f32 / (1u64 << 29) as f32 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

/// The numbers as elements of a type, and what they became by that.
fn elements(driver: &Arc<dyn Driver>, element: i64, x: &[f32]) -> (Block, Vec<f32>) {
    match element {
        0 => {
            let x: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
            (Block::of(driver, &x).unwrap(), x.iter().map(|x| x.to_f32()).collect())
        }
        1 => {
            let x: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
            (Block::of(driver, &x).unwrap(), x.iter().map(|x| x.to_f32()).collect())
        }
        _ => (Block::of(driver, x).unwrap(), x.to_vec()),
    }
}

/// Queries times keys and weights times values: 16 x 32 by 8 keys, and by 8 columns of 32 rows.
const PRODUCTS: &str = r#"
#define STRIDE 40
__device__ void store(float *out, const float d[4]) {
    int r = threadIdx.x % WARP / 4, c = threadIdx.x % 4 * 2;
    for (int half = 0; half < 2; half++) {
        out[r * 8 + c + half] = d[half];
        out[(r + 8) * 8 + c + half] = d[2 + half];
    }
}
extern "C" __global__ void kernel(const element *a, const element *keys, const element *values, float *by_keys, float *by_values) {
    __shared__ __align__(16) element a_tile[16 * STRIDE], key_tile[8 * STRIDE], value_tile[32 * 8];
    for (int i = threadIdx.x; i < 16 * 32; i += WARP) a_tile[i / 32 * STRIDE + i % 32] = a[i];
    for (int i = threadIdx.x; i < 8 * 32; i += WARP) {
        key_tile[i / 32 * STRIDE + i % 32] = keys[i];
        value_tile[i] = values[i];
    }
    __syncthreads();
    float k[4] = {0, 0, 0, 0}, v[4] = {0, 0, 0, 0};
    for (int step = 0; step < 2; step++) {
        FragmentA fa;
        FragmentB fb;
        load_a(fa, a_tile + step * 16, STRIDE);
        load_b(fb, key_tile + step * 16, STRIDE);
        multiply(k, fa, fb);
        load_b_rows(fb, value_tile + step * 16 * 8, 8);
        multiply(v, fa, fb);
    }
    store(by_keys, k);
    store(by_values, v);
}
"#;

#[test]
fn fragments_multiply_as_loops_do() {
    for seed in 0..3 {
        let Some(driver) = emulator(seed) else { return };
        for element in 0..3 {
            let (a, a_there) = elements(&driver, element, &numbers(16 * 32, seed + 10));
            let (keys, keys_there) = elements(&driver, element, &numbers(8 * 32, seed + 20));
            let (values, values_there) = elements(&driver, element, &numbers(32 * 8, seed + 30));
            let by_keys = Block::new(&driver, 16 * 8 * 4).unwrap();
            let by_values = Block::new(&driver, 16 * 8 * 4).unwrap();
            let args = [a.arg(), keys.arg(), values.arg(), by_keys.arg(), by_values.arg()];
            run(&driver, PRODUCTS, &[("ELEMENT", element)], [1, 1, 1], 32, 0, &args).unwrap();
            let by_keys: Vec<f32> = by_keys.read(0, 128).unwrap();
            let by_values: Vec<f32> = by_values.read(0, 128).unwrap();
            for i in 0..16 {
                for j in 0..8 {
                    let check = |got: f32, b: &dyn Fn(usize) -> f32| {
                        let terms = (0..32).map(|k| f64::from(a_there[i * 32 + k]) * f64::from(b(k)));
                        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                        let error = (f64::from(got) - sum).abs() / size;
                        assert!(error < 1e-6, "element {element}, ({i}, {j}): {got}, not {sum}: {error:e}");
                    };
                    check(by_keys[i * 8 + j], &|k| keys_there[j * 32 + k]);
                    check(by_values[i * 8 + j], &|k| values_there[k * 8 + j]);
                }
            }
        }
    }
}

/// What lane l gets in register j: 16-bit elements 2 (l % 4) and the next of row l / 4 of matrix j.
#[test]
fn matrices_are_spread_over_lanes() {
    let text = r#"
extern "C" __global__ void kernel(u32 *four, u32 *two, u32 *transposed) {
    __shared__ __align__(16) u16 tile[4 * 64];
    for (int i = threadIdx.x; i < 4 * 64; i += WARP) tile[i] = i;
    __syncwarp();
    int lane = threadIdx.x;
    u32 r[4];
    load_matrices_4(r, tile + lane * 8);
    for (int j = 0; j < 4; j++) four[j * WARP + lane] = r[j];
    // The addresses of lanes 16 to 31 do not matter.
    load_matrices_2(r, tile + (lane < 16 ? lane * 8 : 1));
    for (int j = 0; j < 2; j++) two[j * WARP + lane] = r[j];
    load_matrices_2_transposed(r, tile + lane % 16 * 8);
    for (int j = 0; j < 2; j++) transposed[j * WARP + lane] = r[j];
}
"#;
    let Some(driver) = emulator(4) else { return };
    let blocks: Vec<Block> = (0..3).map(|_| Block::new(&driver, 512).unwrap()).collect();
    let args: Vec<_> = blocks.iter().map(Block::arg).collect();
    run(&driver, text, &[("ELEMENT", 1)], [1, 1, 1], 32, 0, &args).unwrap();
    let read = |i: usize, n| blocks[i].read::<[u16; 2]>(0, n).unwrap();
    for lane in 0..32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        for j in 0..4 {
            let first = (j * 64 + row * 8 + column) as u16;
            assert_eq!(read(0, 128)[j * 32 + lane], [first, first + 1]);
            if j < 2 {
                assert_eq!(read(1, 64)[j * 32 + lane], [first, first + 1]);
                let first = (j * 64 + column * 8 + row) as u16;
                assert_eq!(read(2, 64)[j * 32 + lane], [first, first + 8]);
            }
        }
    }
}

#[test]
fn addresses_of_matrices_and_copies_are_checked() {
    let text = r#"
extern "C" __global__ void kernel(u16 *data) {
    __shared__ __align__(16) u16 tile[32 * 8 + 8];
    tile[threadIdx.x] = 0;
    u32 r[4];
    if (CASE == 0) load_matrices_4(r, tile + threadIdx.x * 8 + 1);
    if (CASE == 1) load_matrices_4(r, data + threadIdx.x * 8);
    if (CASE == 2) copy_async_16(tile + 4, data, true);
    if (CASE == 3) copy_async_16(tile, data + 4, true);
    if (CASE == 4) copy_async_16(data, data, true);
    if (CASE == 5) copy_async_16(tile, tile, true);
    data[threadIdx.x] = tile[0];
}
"#;
    let Some(driver) = emulator(1) else { return };
    let data = Block::zeroed(&driver, 1024).unwrap();
    let tell = |case| match run(&driver, text, &[("CASE", case)], [1, 1, 1], 32, 0, &[data.arg()]) {
        Err(CudaError::Call { reason, .. }) => reason,
        other => panic!("case {case}: {other:?}"),
    };
    for (case, says) in [
        (0, "not on a boundary of 16"),
        (1, "outside shared memory"),
        (2, "not on a boundary of 16"),
        (3, "from no boundary of 16"),
        (4, "outside shared memory"),
        (5, "reads shared memory"),
    ] {
        assert!(tell(case).contains(says), "case {case}: {}", tell(case));
    }
}

/// Two groups of copies: what is there before the wait, after the wait for the first, and after that for both.
const COPIES: &str = r#"
extern "C" __global__ void kernel(const int *from, int *out) {
    __shared__ __align__(16) int to[3 * 4];
    if (threadIdx.x == 0) {
        for (int i = 0; i < 12; i++) to[i] = -1;
        copy_async_16(to, from, true);
        copy_async_commit();
        copy_async_16(to + 4, from + 4, true);
        copy_async_16(to + 8, from + 8, false);
        copy_async_commit();
        for (int i = 0; i < 12; i++) out[i] = to[i];
        COPY_ASYNC_WAIT(1);
        for (int i = 0; i < 12; i++) out[12 + i] = to[i];
        COPY_ASYNC_WAIT(0);
        for (int i = 0; i < 12; i++) out[24 + i] = to[i];
    }
}
"#;

#[test]
fn copies_are_there_after_the_wait() {
    let mut early = 0;
    for seed in 0..6 {
        let Some(driver) = emulator(seed) else { return };
        let from = Block::of(&driver, &(1..13).collect::<Vec<i32>>()).unwrap();
        let out = Block::new(&driver, 36 * 4).unwrap();
        run(&driver, COPIES, &[], [1, 1, 1], 32, 0, &[from.arg(), out.arg()]).unwrap();
        let out: Vec<i32> = out.read(0, 36).unwrap();
        if seed == 0 {
            assert_eq!(out[..12], [-1; 12]);
            assert_eq!(out[16..24], [-1; 8]);
        }
        early += usize::from(out[..12] != [-1; 12]);
        assert_eq!(out[12..16], [1, 2, 3, 4]);
        assert_eq!(out[24..], [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0]);
    }
    assert!((1..6).contains(&early), "copies come early under {early} of 6 seeds");
}

/// A buffer that is used again before its last copy was waited for.
#[test]
fn seeds_show_copies_that_were_not_waited_for() {
    let text = r#"
extern "C" __global__ void kernel(const int *from, int *out) {
    __shared__ __align__(16) int buffer[4 * WARP];
    copy_async_16(buffer + 4 * threadIdx.x, from, true);
    copy_async_commit();
    if (WAIT) COPY_ASYNC_WAIT(0);
    for (int i = 0; i < 4; i++) buffer[4 * threadIdx.x + i] = 7;
    __syncwarp();
    out[threadIdx.x] = buffer[4 * threadIdx.x + 3];
}
"#;
    for wait in [0, 1] {
        let mut wrong = 0;
        for seed in 0..6 {
            let Some(driver) = emulator(seed) else { return };
            let (from, out) = (Block::zeroed(&driver, 16).unwrap(), Block::new(&driver, 128).unwrap());
            run(&driver, text, &[("WAIT", wait)], [1, 1, 1], 32, 0, &[from.arg(), out.arg()]).unwrap();
            wrong += usize::from(out.read::<i32>(0, 32).unwrap() != [7; 32]);
        }
        assert_eq!(wrong > 0, wait == 0, "wait {wait}: {wrong} of 6 seeds are wrong");
    }
}

/// Every half, and floats around every half, as the `half` crate has them.
#[test]
fn halves_are_rounded_to_nearest_even() {
    let text = r#"
extern "C" __global__ void kernel(const float *from, int n, u16 *out, float *back) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = half_from_float(from[i]);
    back[i] = half_to_float((u16)i);
}
"#;
    let Some(driver) = emulator(0) else { return };
    let mut from = Vec::new();
    for bits in 0..=u16::MAX {
        let x = f16::from_bits(bits).to_f32();
        // Half way to the next, and a bit to both sides of it.
        let half_way = x.to_bits() + 0x1000;
        from.extend([
            x,
            f32::from_bits(half_way),
            f32::from_bits(half_way - 1),
            f32::from_bits(half_way + 1),
        ]);
    }
    from.extend([65519.0, 65520.0, -65520.0, 1e30, 5.9e-8, 2.9e-8, 2.99e-8, 1e-30, f32::MIN_POSITIVE]);
    let n = from.len();
    let (input, out) = (Block::of(&driver, &from).unwrap(), Block::new(&driver, n * 2).unwrap());
    let back = Block::new(&driver, n * 4).unwrap();
    let args = [input.arg(), reattention_cuda::driver::Arg::Int(n as i32), out.arg(), back.arg()];
    run(&driver, text, &[], [n.div_ceil(1024) as u32, 1, 1], 1024, 0, &args).unwrap();
    let (out, back): (Vec<u16>, Vec<f32>) = (out.read(0, n).unwrap(), back.read(0, n).unwrap());
    for (i, &x) in from.iter().enumerate() {
        let expected = f16::from_f32(x);
        let got = f16::from_bits(out[i]);
        assert!(
            got == expected && got.is_sign_negative() == x.is_sign_negative() || got.is_nan() && x.is_nan(),
            "{x:e}"
        );
    }
    for bits in 0..=u16::MAX {
        let (expected, got) = (f16::from_bits(bits).to_f32(), back[usize::from(bits)]);
        assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{bits:#x}: {got}");
    }
}

//! Blocks, warps and lanes: what waits for what.
#![allow(missing_docs)]

mod common;

use common::{emulator, output, run};
use reattention_cuda::driver::{Arg, Block, CudaError};

const SEEDS: [u64; 4] = [0, 1, 2, 3];

/// The reason of a launch that is refused or given up.
#[track_caller]
fn reason(result: Result<impl Sized, CudaError>) -> String {
    match result {
        Err(CudaError::Call { call: "launch", reason }) => reason,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the launch succeeds"),
    }
}

#[test]
fn shuffles_follow_cuda() {
    let text = r#"
extern "C" __global__ void kernel(int *out) {
    int lane = threadIdx.x;
    out[lane] = __shfl_sync(FULL, lane * 10, 5);
    out[32 + lane] = __shfl_sync(FULL, lane * 10, 3, 8);
    out[64 + lane] = __shfl_up_sync(FULL, lane, 3);
    out[96 + lane] = __shfl_down_sync(FULL, lane, 2, 16);
    out[128 + lane] = __shfl_xor_sync(FULL, lane, 9);
    long long wide = __shfl_xor_sync(FULL, (long long)lane << 40, 1);
    out[160 + lane] = (int)(wide >> 40);
    out[192 + lane] = (int)warp_sum((float)lane);
    out[224 + lane] = (int)warp_max((float)(lane == 17 ? 99 : lane));
}
"#;
    for seed in SEEDS {
        let Some(driver) = emulator(seed) else { return };
        let out: Vec<i32> = output(&driver, text, 32, 256).unwrap();
        for lane in 0..32 {
            let got = |i: i32| out[(i * 32 + lane) as usize];
            assert_eq!(got(0), 50);
            assert_eq!(got(1), (lane / 8 * 8 + 3) * 10);
            assert_eq!(got(2), if lane < 3 { lane } else { lane - 3 });
            assert_eq!(got(3), if lane % 16 < 14 { lane + 2 } else { lane });
            assert_eq!(got(4), lane ^ 9);
            assert_eq!(got(5), lane ^ 1);
            assert_eq!(got(6), 31 * 16);
            assert_eq!(got(7), 99);
        }
    }
}

#[test]
fn votes_count_lanes() {
    let text = r#"
extern "C" __global__ void kernel(u32 *out) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 odd = __ballot_sync(FULL, lane % 2 + warp == 1);
    u32 any = __any_sync(FULL, lane == 7 && warp == 0);
    u32 all = __all_sync(FULL, lane != 7 || warp == 0);
    if (lane == 11) {
        out[warp * 3] = odd;
        out[warp * 3 + 1] = any;
        out[warp * 3 + 2] = all;
    }
}
"#;
    for seed in SEEDS {
        let Some(driver) = emulator(seed) else { return };
        let out: Vec<u32> = output(&driver, text, 64, 6).unwrap();
        assert_eq!(out, [0xaaaa_aaaa, 1, 1, 0x5555_5555, 0, 0]);
    }
}

/// Sums of blocks of several warps, over static and dynamic shared memory; the blocks add up by an atomic.
#[test]
fn blocks_reduce() {
    let text = r#"
extern "C" __global__ void __launch_bounds__(256, 1) kernel(const int *in, int n, u64 *total, u32 *blocks, int *mark) {
    DYNAMIC_SHARED(bytes);
    int *values = (int *)bytes;
    __shared__ int of_warp[8];
    int at = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
    values[threadIdx.x] = at < n ? in[at] : 0;
    __syncthreads();
    // Each thread takes the number of its mirror, so that warps need each other's.
    int x = values[blockDim.x - 1 - threadIdx.x];
    for (int d = 16; d > 0; d /= 2) x += __shfl_down_sync(FULL, x, d);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    x = threadIdx.x < blockDim.x / WARP ? of_warp[threadIdx.x] : 0;
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(FULL, x, d);
    if (threadIdx.x == 0) {
        atomicAdd(total, (u64)x);
        u32 before = atomicAdd(blocks, 1u);
        atomicMax(mark, (int)before);
    }
}
"#;
    for seed in SEEDS {
        let Some(driver) = emulator(seed) else { return };
        let n = 256 * 6 - 100;
        let values: Vec<i32> = (0..n).map(|i| i * 7 % 1000).collect();
        let input = Block::of(&driver, &values).unwrap();
        let (total, blocks) = (Block::zeroed(&driver, 8).unwrap(), Block::zeroed(&driver, 4).unwrap());
        let mark = Block::of(&driver, &[-1i32]).unwrap();
        let args = [input.arg(), Arg::Int(n), total.arg(), blocks.arg(), mark.arg()];
        run(&driver, text, &[], [3, 2, 1], 256, 256 * 4, &args).unwrap();
        assert_eq!(total.read::<u64>(0, 1).unwrap(), [values.iter().map(|&x| x as u64).sum::<u64>()]);
        assert_eq!(blocks.read::<u32>(0, 1).unwrap(), [6]);
        assert_eq!(mark.read::<i32>(0, 1).unwrap(), [5]);
    }
}

#[test]
fn atomics_return_what_was_there() {
    let text = r#"
extern "C" __global__ void kernel(u32 *out) {
    __shared__ u32 counter, bits, holder, best;
    if (threadIdx.x == 0) { counter = 0; bits = 0; holder = NONE; best = 0; }
    __syncthreads();
    u32 mine = atomicAdd(&counter, 1u);
    atomicOr(&bits, 1u << mine % 32);
    atomicCAS(&holder, NONE, mine);
    atomicMax(&best, mine);
    out[mine] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        out[64] = counter; out[65] = bits; out[66] = holder; out[67] = best;
        out[68] = atomicExch(&best, 3u); out[69] = best;
    }
}
"#;
    let Some(driver) = emulator(5) else { return };
    let out: Vec<u32> = output(&driver, text, 64, 70).unwrap();
    assert_eq!(out[..64], (0..64).collect::<Vec<u32>>());
    assert_eq!(out[64..], [64, u32::MAX, 0, 63, 63, 3]);
}

/// The barrier that keeps the second half from reading too early is left out.
const RACE: &str = r#"
extern "C" __global__ void kernel(int *out) {
    __shared__ int values[128];
    values[threadIdx.x] = threadIdx.x;
    if (BARRIER) __syncthreads();
    out[threadIdx.x] = values[127 - threadIdx.x];
}
"#;

#[test]
fn seeds_show_a_missing_barrier() {
    let expected: Vec<i32> = (0..128).rev().collect();
    for barrier in [0, 1] {
        let mut wrong = 0;
        for seed in 0..8 {
            let Some(driver) = emulator(seed) else { return };
            let out = Block::new(&driver, 512).unwrap();
            run(&driver, RACE, &[("BARRIER", barrier)], [1, 1, 1], 128, 0, &[out.arg()]).unwrap();
            wrong += usize::from(out.read::<i32>(0, 128).unwrap() != expected);
        }
        assert_eq!(wrong > 0, barrier == 0, "barrier {barrier}: {wrong} of 8 seeds are wrong");
    }
}

#[test]
fn seeds_show_a_missing_warp_barrier() {
    let text = r#"
extern "C" __global__ void kernel(int *out) {
    __shared__ int values[32];
    values[threadIdx.x] = threadIdx.x;
    if (BARRIER) __syncwarp();
    // Right in order: only those before are read.
    out[threadIdx.x] = values[threadIdx.x / 2];
}
"#;
    let expected: Vec<i32> = (0..32).map(|i| i / 2).collect();
    for barrier in [0, 1] {
        let mut wrong = 0;
        for seed in 0..8 {
            let Some(driver) = emulator(seed) else { return };
            let out = Block::new(&driver, 128).unwrap();
            run(&driver, text, &[("BARRIER", barrier)], [1, 1, 1], 32, 0, &[out.arg()]).unwrap();
            let is_wrong = out.read::<i32>(0, 32).unwrap() != expected;
            assert!(seed != 0 || !is_wrong, "lanes are not in order with seed 0");
            wrong += usize::from(is_wrong);
        }
        assert_eq!(wrong > 0, barrier == 0, "barrier {barrier}: {wrong} of 8 seeds are wrong");
    }
}

#[test]
fn lanes_that_never_meet_are_told() {
    let text = r#"
extern "C" __global__ void kernel(int *out) {
    int lane = threadIdx.x % WARP;
    if (CASE == 0 && lane == 3) return;
    if (CASE == 1 && lane == 3) __syncthreads();
    if (CASE == 2 && lane == 3) { __ballot_sync(FULL, 1); return; }
    if (CASE == 3) { __shfl_sync(7u, lane, 0); return; }
    if (CASE == 4) {
        if (lane < 16) out[0] = __shfl_sync(FULL, lane, 0);
        else out[1] = __shfl_sync(FULL, lane, 1);
    }
    if (CASE == 5) {
        if (lane < 16) __syncthreads();
        else __syncthreads();
    }
    if (CASE == 6) __trap();
    out[threadIdx.x] = __shfl_sync(FULL, lane, 0);
}
"#;
    for seed in SEEDS {
        let Some(driver) = emulator(seed) else { return };
        let out = Block::new(&driver, 256).unwrap();
        let text = |case| reason(run(&driver, text, &[("CASE", case)], [2, 1, 1], 64, 0, &[out.arg()]));
        let told = text(0);
        assert!(told.contains("`kernel`, block (") && told.contains("deadlock"), "{told}");
        assert!(told.contains("the lanes 0xfffffff7 wait at __shfl_sync (test.cu:17)"), "{told}");
        assert!(told.contains("0x8 have returned"), "{told}");
        for (case, says) in [
            (1, &["0x8 at __syncthreads (line 5), and 0 have returned"][..]),
            (2, &["__ballot_sync (test.cu:6)", "__shfl_sync (test.cu:17)"]),
            (3, &["__shfl_sync with the mask 0x7 (test.cu:7)"]),
            (4, &["__shfl_sync (test.cu:9)", "__shfl_sync (test.cu:10)"]),
            (5, &["wait at __syncthreads in", "test.cu:13", "test.cu:14"]),
            (6, &["traps (test.cu:16)"]),
        ] {
            let told = text(case);
            assert!(says.iter().all(|say| told.contains(say)), "case {case}: {told}");
        }
        // A launch that was given up leaves the emulator as it was.
        run(&driver, RACE, &[("BARRIER", 1)], [1, 1, 1], 32, 0, &[out.arg()]).unwrap();
    }
}

/// Threads that have returned are not waited for at a barrier of the block.
#[test]
fn returned_warps_pass_barriers() {
    let text = r#"
extern "C" __global__ void kernel(int *out) {
    __shared__ int value;
    if (threadIdx.x >= 64) return;
    if (threadIdx.x == 63) value = 42;
    __syncthreads();
    out[threadIdx.x] = value;
}
"#;
    for seed in SEEDS {
        let Some(driver) = emulator(seed) else { return };
        assert_eq!(output::<i32>(&driver, text, 128, 64).unwrap(), [42; 64]);
    }
}

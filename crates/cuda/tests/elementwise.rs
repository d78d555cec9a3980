//! The kernels between products, on the emulated device, against plain loops.

use cuda_emulator::device_with_seed;
use half::{bf16, f16};
use reattention_cuda::driver::{Block, CudaError, Driver, Dtype, Span};
use reattention_cuda::testing::elementwise as kernels;
use reattention_cuda::testing::paged::{Cached, CachedShape, PageEntry};
use reattention_kernels::PAGE;
use std::sync::Arc;

/// Runs a test under two orders of threads; without a compiler it says so.
fn with_device(test: impl Fn(&Arc<dyn Driver>)) {
    for seed in [1, 2] {
        let Some(device) = device_with_seed(seed) else { return };
        test(&device);
    }
}

/// Numbers between -4 and 4, by a seed.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 21) as f32 - 4.0
    };
    (0..n).map(|_| next()).collect()
}

/// Numbers that start some bytes into their block.
struct Placed(Block, usize);

impl Placed {
    fn span(&self) -> Span<'_> {
        self.0.span().skip(self.1)
    }
}

/// A copy of `data` that starts `skip` numbers into its block, so that not every row starts on a boundary of 16 bytes.
fn place<T: bytemuck::Pod>(driver: &Arc<dyn Driver>, data: &[T], skip: usize) -> Placed {
    let block = Block::new(driver, (data.len() + skip) * size_of::<T>()).unwrap();
    block.write(skip * size_of::<T>(), data).unwrap();
    Placed(block, skip * size_of::<T>())
}

fn read<T: bytemuck::Pod>(placed: &Placed, n: usize) -> Vec<T> {
    placed.0.read(placed.1, n).unwrap()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * e.abs().max(1e-3), "number {i}: {f}, expected {e}");
    }
}

/// Lengths of rows: below and above a warp's, a block's, and what a warp takes alone; in fours and not.
const LENGTHS: [usize; 8] = [1, 16, 33, 128, 511, 516, 1024, 1030];

#[test]
fn norms_are_those_of_the_formula() {
    with_device(|driver| {
        for (case, n) in LENGTHS.into_iter().enumerate() {
            for (rows, skip) in [(1, 0), (3, 1), (19, 0)] {
                let (x, weight) = (numbers(case as u64, rows * n), numbers(7, n));
                let mut expected = Vec::new();
                for row in x.chunks(n) {
                    let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
                    let factor = 1.0 / (mean + 1e-5).sqrt();
                    expected.extend(
                        row.iter().zip(&weight).map(|(x, w)| (f64::from(*x) * factor * f64::from(*w)) as f32),
                    );
                }
                let (weight, from, to) = (
                    Block::of(driver, &weight).unwrap(),
                    place(driver, &x, skip),
                    place(driver, &vec![0f32; rows * n], 0),
                );
                kernels::rms_norm(driver, from.span(), weight.span(), to.span(), rows, n, 1e-5).unwrap();
                assert_close(&read(&to, rows * n), &expected, 1e-5);
                // Onto itself.
                kernels::rms_norm(driver, from.span(), weight.span(), from.span(), rows, n, 1e-5).unwrap();
                assert_eq!(read::<f32>(&from, rows * n), read::<f32>(&to, rows * n));
            }
        }
    });
}

#[test]
fn numbers_are_taken_one_by_one() {
    with_device(|driver| {
        for n in [0, 1, 3, 4, 1023, 40_001] {
            for skip in [0, 1] {
                let (a, b) = (numbers(3, n), numbers(4, n));
                let (gate, up) = (place(driver, &a, skip), place(driver, &b, 0));
                kernels::silu_mul(driver, gate.span(), up.span(), n).unwrap();
                let silu = |g: f32| (f64::from(g) / (1.0 + (-f64::from(g)).exp())) as f32;
                let expected: Vec<f32> = a.iter().zip(&b).map(|(g, u)| silu(*g) * u).collect();
                assert_close(&read(&gate, n), &expected, 1e-5);

                let (y, x) = (place(driver, &a, skip), place(driver, &b, skip));
                kernels::add(driver, y.span(), x.span(), n).unwrap();
                assert_eq!(read::<f32>(&y, n), a.iter().zip(&b).map(|(y, x)| y + x).collect::<Vec<_>>());
            }
        }
        for (rows, n, skip) in [(1, 1, 0), (5, 300, 0), (3, 1028, 0), (4, 35, 1)] {
            let (y, bias) = (numbers(1, rows * n), numbers(2, n));
            let (on_device, of_bias) = (place(driver, &y, skip), place(driver, &bias, skip));
            kernels::add_bias(driver, on_device.span(), of_bias.span(), rows, n).unwrap();
            let expected: Vec<f32> = y.iter().enumerate().map(|(i, y)| y + bias[i % n]).collect();
            assert_eq!(read::<f32>(&on_device, rows * n), expected);
        }
    });
}

/// What numbers are as elements of `dtype`, as bytes.
fn elements(x: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => x.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
        Dtype::F16 => x.iter().flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect(),
        Dtype::F32 => x.iter().flat_map(|x| x.to_ne_bytes()).collect(),
    }
}

fn rounded(x: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(x).to_f32(),
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::F32 => x,
    }
}

const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

#[test]
fn numbers_become_the_nearest_elements_and_rows_are_found_again() {
    with_device(|driver| {
        for dtype in DTYPES {
            let mut x = numbers(5, 5003);
            x[..6].copy_from_slice(&[f32::INFINITY, -0.0, 1e-30, 6e-8, 70_000.0, f32::MIN_POSITIVE]);
            for skip in [0, 1] {
                let (from, to) =
                    (place(driver, &x, skip), place(driver, &vec![0u8; x.len() * dtype.bytes()], 0));
                kernels::to_element(driver, from.span(), to.span(), x.len(), dtype).unwrap();
                assert_eq!(read::<u8>(&to, x.len() * dtype.bytes()), elements(&x, dtype), "{dtype:?}");
            }
            for n in [8, 300, 1029] {
                let (table, ids) = (numbers(6, 11 * n), [10u32, 0, 3, 3, 7]);
                let (on_device, ids_there) =
                    (Block::of(driver, &elements(&table, dtype)).unwrap(), Block::of(driver, &ids).unwrap());
                let y = Block::new(driver, 4 * ids.len() * n).unwrap();
                let (from, to) = (on_device.span(), y.span());
                // SAFETY: the table has 11 rows.
                unsafe { kernels::embed(driver, from, dtype, ids_there.span(), to, ids.len(), n).unwrap() };
                let rows = |of: &dyn Fn(f32) -> f32| -> Vec<f32> {
                    ids.iter().flat_map(|id| &table[*id as usize * n..][..n]).map(|x| of(*x)).collect()
                };
                assert_eq!(
                    y.read::<f32>(0, ids.len() * n).unwrap(),
                    rows(&|x| rounded(x, dtype)),
                    "{dtype:?}"
                );

                let (x, y) = (place(driver, &table, n % 2), place(driver, &vec![0f32; ids.len() * n], 0));
                let (from, to) = (x.span(), y.span());
                // SAFETY: as above.
                unsafe { kernels::gather_rows(driver, from, ids_there.span(), to, ids.len(), n).unwrap() };
                assert_eq!(read::<f32>(&y, ids.len() * n), rows(&|x| x));
            }
        }
    });
}

#[test]
fn new_keys_and_values_stand_in_their_pages() {
    with_device(|driver| {
        // (type, head_dim, KV heads, first token, tokens, numbers between tokens)
        for (dtype, head_dim, n_kv_heads, first, tokens, gap) in [
            (Dtype::Bf16, 16, 1, 0, 1, 0),
            (Dtype::F16, 32, 3, PAGE - 5, 9, 4),
            (Dtype::F32, 80, 2, 2 * PAGE - 1, 2, 12),
            (Dtype::Bf16, 128, 2, PAGE, 70, 0),
        ] {
            let (width, page) = (n_kv_heads * head_dim, n_kv_heads * PAGE * head_dim);
            let pages: Vec<[Block; 2]> = (0..3)
                .map(|_| [0; 2].map(|_| Block::zeroed(driver, page * dtype.bytes()).unwrap()))
                .collect();
            let entries: Vec<PageEntry> = pages
                .iter()
                .map(|[keys, values]| PageEntry { keys: keys.at(), values: values.at() })
                .collect();
            let table = Block::of(driver, &entries).unwrap();
            let shape = CachedShape { len: first + tokens, n_kv_heads, head_dim, dtype };
            // SAFETY: three pages of this shape stay until the end.
            let cached = unsafe { Cached::new(driver, table.at(), shape) };

            let stride = width + gap;
            let sources = [numbers(8, tokens * stride), numbers(9, tokens * stride)];
            let [keys, values] = [&sources[0], &sources[1]].map(|s| Block::of(driver, s).unwrap());
            let rows = kernels::NewRows { keys: keys.span(), values: values.span(), stride, tokens };
            // SAFETY: the pages are there.
            unsafe { kernels::append(driver, &rows, &cached, first).unwrap() };

            for (which, source) in sources.iter().enumerate() {
                let mut expected = vec![vec![0f32; page]; 3];
                for t in 0..tokens {
                    for head in 0..n_kv_heads {
                        let (at, token) = (t * stride + head * head_dim, first + t);
                        let to = (head * PAGE + token % PAGE) * head_dim;
                        expected[token / PAGE][to..to + head_dim].copy_from_slice(&source[at..at + head_dim]);
                    }
                }
                for (p, expected) in expected.iter().enumerate() {
                    let found = pages[p][which].read::<u8>(0, page * dtype.bytes()).unwrap();
                    assert!(found == elements(expected, dtype), "{dtype:?}, page {p}, array {which}");
                }
            }
            let longer = Block::new(driver, keys.bytes() + 4).unwrap();
            let odd = kernels::NewRows { keys: longer.span().skip(4), ..rows };
            // SAFETY: as above.
            let refused = unsafe { kernels::append(driver, &odd, &cached, first) };
            assert!(matches!(refused, Err(CudaError::Unsupported { .. })));
        }
    });
}

#[test]
fn the_largest_logit_is_found() {
    with_device(|driver| {
        let infinity = f32::INFINITY;
        let mut rows: Vec<(Vec<f32>, u32)> = vec![
            (vec![3.0], 0),
            (vec![-infinity; 700], 0),
            (vec![-1.0, infinity, infinity, 2.0], 1),
            (vec![f32::NAN; 5], kernels::NONE),
            (vec![-0.0, 0.0, -0.0, -3.0], 0),
        ];
        for n in [31, 256, 1000, 5003] {
            let mut x = numbers(n as u64, n);
            for at in [n / 2, n - 1, n / 3 + 1] {
                x[at] = 4.5;
            }
            rows.push((x.clone(), (n / 3 + 1) as u32));
            // Greater than all numbers is not greater than what is none.
            (x[0], x[n - 2]) = (infinity, f32::NAN);
            rows.push((x, kernels::NONE));
        }
        for (x, expected) in rows {
            for (copies, skip) in [(1, 0), (2, 1)] {
                let (on_device, y) =
                    (place(driver, &x.repeat(copies), skip), Block::new(driver, 4 * copies).unwrap());
                kernels::argmax(driver, on_device.span(), y.span(), copies, x.len()).unwrap();
                assert_eq!(y.read::<u32>(0, copies).unwrap(), vec![expected; copies], "{} numbers", x.len());
            }
        }
    });
}

#[test]
fn losses_are_those_of_the_formula() {
    with_device(|driver| {
        for (rows, n, factor) in [(1, 1, 1.0), (3, 37, 1.0), (2, 5003, 20.0), (2, 300, 1e4)] {
            let x: Vec<f32> = numbers(n as u64, rows * n).iter().map(|x| x * factor).collect();
            let targets: Vec<u32> = (0..rows).map(|r| (r * 31 % n) as u32).collect();
            let expected: Vec<f32> = x
                .chunks(n)
                .zip(&targets)
                .map(|(row, target)| {
                    let most = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
                    let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
                    (sum.ln() + f64::from(most) - f64::from(row[*target as usize])) as f32
                })
                .collect();
            let (x, targets) = (Block::of(driver, &x).unwrap(), Block::of(driver, &targets).unwrap());
            let y = Block::new(driver, 4 * rows).unwrap();
            // SAFETY: the targets are below `n`.
            unsafe { kernels::losses(driver, x.span(), targets.span(), y.span(), rows, n).unwrap() };
            assert_close(&y.read(0, rows).unwrap(), &expected, 1e-5);
        }
        let (x, target) =
            (Block::of(driver, &[1.0, f32::NAN, 2.0]).unwrap(), Block::of(driver, &[0u32]).unwrap());
        let y = Block::new(driver, 4).unwrap();
        // SAFETY: the target is below three.
        unsafe { kernels::losses(driver, x.span(), target.span(), y.span(), 1, 3).unwrap() };
        assert!(y.read::<f32>(0, 1).unwrap()[0].is_nan());
    });
}

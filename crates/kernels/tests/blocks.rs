//! Weights in blocks, of every type and on every path, against the reference, which decodes them one by one.

mod common;
use common::{Rng, backends};
use reattention_kernels::{Backend, BlockType, Buffer, Matrix, MatrixData, Reference, bf16, f16};

/// Where the half-precision numbers of a block lie.
fn halves(kind: BlockType) -> &'static [usize] {
    match kind {
        BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q6K => &[208],
        _ => &[0],
    }
}

/// Blocks of every byte there is, with scales of either sign.
fn matrix(kind: BlockType, rows: usize, cols: usize, rng: &mut Rng) -> Matrix {
    let mut bytes = Buffer::<u8>::zeroed(kind.row_bytes(cols).unwrap() * rows);
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        block.iter_mut().for_each(|b| *b = rng.next() as u8);
        for &at in halves(kind) {
            block[at..at + 2].copy_from_slice(&f16::from_f32(rng.real() / 100.0).to_le_bytes());
        }
    }
    Matrix::new(rows, cols, MatrixData::Blocks(kind, bytes)).unwrap()
}

/// What an activation comes to be with few rows: 8 bits, a scale for each 32.
fn rounded(x: &[f32]) -> Vec<f32> {
    let round = |x: &[f32]| {
        let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        x.iter().map(|x| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0)).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(round).collect()
}

/// Fails unless the rows differ by at most `tolerance` of their size.
fn assert_near(got: &[f32], want: &[f32], tolerance: f64, what: &str) {
    let size = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    let error = size(&mut got.iter().zip(want).map(|(g, w)| g - w)) / size(&mut want.iter().copied());
    assert!(error <= tolerance, "{what}: off by {error:.1e} of the size");
}

fn check(kind: BlockType, rows: usize, inputs: usize, outputs: usize, with_bias: bool, rng: &mut Rng) {
    let w = matrix(kind, outputs, inputs, rng);
    // Groups of very different sizes, exact in bf16.
    let x: Vec<f32> = (0..rows * inputs)
        .map(|i| bf16::from_f32(rng.normal() * 2f32.powi((i / 32 % 9) as i32 * 3 - 12)).to_f32())
        .collect();
    let bias: Vec<f32> = (0..outputs).map(|_| rng.normal()).collect();
    let bias = with_bias.then_some(&bias[..]);
    let (mut want, mut want_rounded) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
    Reference.linear(&x, rows, &w, bias, &mut want);
    Reference.linear(&rounded(&x), rows, &w, bias, &mut want_rounded);
    for backends in backends() {
        let what = format!("{}, {kind:?}: {rows} x {inputs} -> {outputs}", backends[0].name());
        let mut first = Vec::new();
        for backend in &backends {
            let mut got = vec![f32::NAN; rows * outputs];
            backend.linear(&x, rows, &w, bias, &mut got);
            // Few rows round activations to 8 bits and nothing else, many rows weights to bf16 at most.
            if rows <= 12 {
                assert_near(&got, &want_rounded, 1e-4, &what);
                // A few outputs may lie near zero by chance.
                if got.len() >= 64 {
                    assert_near(&got, &want, 2e-2, &what);
                }
            } else {
                assert_near(&got, &want, 1e-2, &what);
            }
            if first.is_empty() {
                first = got;
            } else {
                assert!(first == got, "{what}: depends on the number of threads");
            }
        }
    }
}

#[test]
fn products_agree_with_the_reference() {
    let mut rng = Rng(40);
    for kind in BlockType::ALL {
        for round in 0..24 {
            let rows = rng.pick(&[1, 1, 2, 3, 4, 5, 7, 12, 13, 33, 70]);
            let inputs = kind.len() * rng.int(1, 2000 / kind.len());
            let outputs = rng.int(1, 150);
            check(kind, rows, inputs, outputs, round % 2 == 0, &mut rng);
        }
        check(kind, 300, 256, 72, true, &mut rng);
        check(kind, 17, 4352, 130, true, &mut rng);
        check(kind, 1, 1024, 1500, false, &mut rng);
    }
}

/// Layouts written down by hand, one weight of each kind of place.
#[test]
fn weights_are_where_the_formats_keep_them() {
    let row = |kind: BlockType, set: &[(usize, u8)]| {
        let mut bytes = Buffer::<u8>::zeroed(kind.bytes());
        set.iter().for_each(|&(at, byte)| bytes[at] = byte);
        let w = Matrix::new(1, kind.len(), MatrixData::Blocks(kind, bytes)).unwrap();
        let mut row = vec![0.0; kind.len()];
        w.copy_row(0, &mut row);
        row
    };
    // The high byte of 1.0 in half precision.
    let one = 0x3c;
    let q4_0 = row(BlockType::Q4_0, &[(1, one), (2 + 3, 0xb2)]);
    assert_eq!((q4_0[3], q4_0[19], q4_0[4]), (-6.0, 3.0, -8.0));
    let q5_0 = row(BlockType::Q5_0, &[(1, one), (2, 0x08), (4, 0x08), (6 + 3, 0xb2)]);
    assert_eq!((q5_0[3], q5_0[19], q5_0[4]), (2.0, 11.0, -16.0));
    let q8_0 = row(BlockType::Q8_0, &[(1, one), (2 + 31, 0x80)]);
    assert_eq!((q8_0[31], q8_0[0]), (-128.0, 0.0));
    // Group 0: scale 2, minimum 3. Group 5: scale 16 + 5, minimum 32 + 7, whose upper bits are those of group 1.
    let k = [(1, one), (3, one), (4, 2), (8, 3), (4 + 1, 0x40), (8 + 1, 0x80), (12 + 1, 0x75)];
    let q4k = row(BlockType::Q4K, &[&k[..], &[(16 + 6, 0x09), (16 + 64 + 7, 0xc0)]].concat());
    assert_eq!((q4k[6], q4k[0], q4k[167], q4k[160]), (15.0, -3.0, 213.0, -39.0));
    let q5k = row(
        BlockType::Q5K,
        &[&k[..], &[(16 + 6, 0x01), (16 + 7, 0x20), (48 + 6, 0x09), (48 + 64 + 7, 0xc0)]].concat(),
    );
    assert_eq!((q5k[6], q5k[0], q5k[167], q5k[160]), (47.0, -3.0, 549.0, -39.0));
    // Weights 5, 37, 69 and 101 of the second half, whose scales are 1, -1, 2 and 3.
    let scales = [(200, 1), (202, 0xff), (204, 2), (206, 3)];
    let q6k = row(
        BlockType::Q6K,
        &[&scales[..], &[(209, one), (64 + 5, 0xa1), (64 + 37, 0xb2), (128 + 32 + 5, 0b11_10_01_00)]]
            .concat(),
    );
    assert_eq!([5, 37, 69, 101].map(|i| q6k[128 + i]), [-31.0, 14.0, 20.0, 81.0]);
}

#[test]
fn hostile_blocks_and_activations_spread_and_do_no_harm() {
    let mut rng = Rng(41);
    for kind in BlockType::ALL {
        let inputs = 3 * 256;
        for rows in [1, 3, 20] {
            let mut bytes = Buffer::<u8>::zeroed(kind.row_bytes(inputs).unwrap() * 4);
            bytes.iter_mut().for_each(|b| *b = rng.next() as u8);
            let row_bytes = bytes.len() / 4;
            // Row 0 may hold anything; row 1 a scale that is no number, row 2 an infinite one, row 3 sane ones.
            for (row, scale) in [(1, f16::NAN), (2, f16::INFINITY), (3, f16::ONE)] {
                for (i, block) in
                    bytes[row * row_bytes..][..row_bytes].chunks_exact_mut(kind.bytes()).enumerate()
                {
                    let scale = if i == 1 { scale } else { f16::ONE };
                    halves(kind)
                        .iter()
                        .for_each(|&at| block[at..at + 2].copy_from_slice(&scale.to_le_bytes()));
                }
            }
            let w = Matrix::new(4, inputs, MatrixData::Blocks(kind, bytes)).unwrap();
            let mut x: Vec<f32> = (0..rows * inputs).map(|_| rng.normal()).collect();
            for backend in backends().iter().flatten() {
                let mut y = vec![0.0; rows * 4];
                backend.linear(&x, rows, &w, None, &mut y);
                for y in y.chunks_exact(4) {
                    assert!(
                        y[1].is_nan() && !y[2].is_finite() && y[3].is_finite(),
                        "{}, {kind:?}: {y:?}",
                        backend.name()
                    );
                }
            }
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                x[(rows - 1) * inputs + 77] = odd;
                for backend in backends().iter().flatten() {
                    let mut y = vec![0.0; rows * 4];
                    backend.linear(&x, rows, &w, None, &mut y);
                    let what = format!("{}, {kind:?}: {y:?}", backend.name());
                    assert!(!y[rows * 4 - 1].is_finite() && (rows == 1 || y[3].is_finite()), "{what}");
                }
            }
            // Zeros, and numbers too small for a scale.
            x.iter_mut().enumerate().for_each(|(i, x)| *x = if i % 2 == 0 { 0.0 } else { 1e-40 });
            for backend in backends().iter().flatten() {
                let mut y = vec![7.0; rows * 4];
                backend.linear(&x, rows, &w, None, &mut y);
                assert!(y.chunks_exact(4).all(|y| y[3].abs() < 1e-30), "{}, {kind:?}: {y:?}", backend.name());
            }
        }
    }
}

#[test]
fn blocks_are_counted() {
    for kind in BlockType::ALL {
        let (len, bytes) = (kind.len(), kind.bytes());
        let made = |rows, cols, bytes| {
            Matrix::new(rows, cols, MatrixData::Blocks(kind, Buffer::zeroed(bytes))).map(|w| w.bytes())
        };
        assert_eq!(made(2, len, 2 * bytes), Ok(2 * bytes));
        for (rows, cols, bytes) in [
            (2, len, 2 * bytes - 1),
            (2, len, bytes),
            (4, len / 2, 2 * bytes),
            (1, len + len / 2, bytes / 2 * 3),
        ] {
            assert!(made(rows, cols, bytes).is_err(), "{kind:?}: {rows} x {cols}, {bytes} bytes");
        }
    }
    assert_eq!(BlockType::Q4K.row_bytes(512), Some(288));
    assert_eq!(BlockType::Q4K.row_bytes(513), None);
}

//! Weights in blocks, of every type and on every path, against the reference, which decodes them one by one.

mod common;
use common::{Rng, backends};
use reattention_kernels::{Backend, BlockType, Buffer, Matrix, MatrixData, Reference, bf16, f16};

/// Where the half-precision numbers of a block lie.
fn halves(kind: BlockType) -> &'static [usize] {
    match kind {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q2K => &[80, 82],
        BlockType::Q3K => &[108],
        BlockType::Q6K => &[208],
        BlockType::Tq1_0 => &[52],
        BlockType::Tq2_0 => &[64],
        BlockType::Mxfp4 | BlockType::Nvfp4 => &[],
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
        if kind == BlockType::Mxfp4 {
            block[0] = rng.int(110, 126) as u8;
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

/// Blocks with the weights that llama.cpp's own package makes of them (testdata/blocks).
#[test]
fn weights_are_those_of_the_published_decoder() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/blocks/blocks.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let mut seen = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [name, block, weights] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let kind = BlockType::ALL.into_iter().find(|kind| kind.name() == name).unwrap();
        let hex = |text: &str, digits: usize| -> Vec<u32> {
            (0..text.len() / digits)
                .map(|i| u32::from_str_radix(&text[i * digits..(i + 1) * digits], 16).unwrap())
                .collect()
        };
        let block: Vec<u8> = hex(block, 2).iter().map(|&b| b as u8).collect();
        let want: Vec<f32> = hex(weights, 8).into_iter().map(f32::from_bits).collect();
        let w = MatrixData::Blocks(kind, Buffer::from_slice(&block));
        let mut got = vec![f32::NAN; kind.len()];
        Matrix::new(1, kind.len(), w).unwrap().copy_row(0, &mut got);
        assert_eq!(got, want, "{name}");
        seen.push(kind);
    }
    seen.dedup();
    // The package has no decoder of the last.
    assert_eq!(seen.len(), BlockType::ALL.len() - 1);
    assert!(!seen.contains(&BlockType::Q1_0));
}

/// What a single weight is, seen by multiplying with one activation: no path may read a weight from elsewhere.
#[test]
fn every_weight_is_read_from_its_place_on_every_path() {
    let mut rng = Rng(43);
    for kind in BlockType::ALL {
        let inputs = kind.len().max(96).next_multiple_of(kind.len());
        let w = matrix(kind, 2, inputs, &mut rng);
        // Few rows are multiplied as integers, many are unpacked; every row asks for one weight.
        for rows in [12, inputs] {
            for first in (0..inputs).step_by(rows) {
                let mut x = vec![0.0; rows * inputs];
                (0..rows.min(inputs - first)).for_each(|r| x[r * inputs + first + r] = 1.0);
                let (mut want, mut got) = (vec![0.0; rows * 2], vec![0.0; rows * 2]);
                Reference.linear(&x, rows, &w, None, &mut want);
                for [backend, ..] in backends() {
                    backend.linear(&x, rows, &w, None, &mut got);
                    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                        // Unpacked weights may be rounded to bf16; offsets of few rows are taken off in f32.
                        let close = (g - w).abs() <= w.abs() / 200.0 + 2e-6;
                        assert!(close, "{}, {kind:?}, weight {}: {g} for {w}", backend.name(), first + i / 2);
                    }
                }
            }
        }
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
    // A minimum of -2.0.
    let q4_1 = row(BlockType::Q4_1, &[(1, one), (3, 0xc0), (4 + 3, 0xb2)]);
    assert_eq!((q4_1[3], q4_1[19], q4_1[4]), (0.0, 9.0, -2.0));
    let q5_1 = row(BlockType::Q5_1, &[(1, one), (3, 0xc0), (4, 0x08), (6, 0x08), (8 + 3, 0xb2)]);
    assert_eq!((q5_1[3], q5_1[19], q5_1[4]), (16.0, 25.0, -2.0));
    // Group 0 has the scale 3 and the minimum 2, group 12 the scale 5; bits 4 and 5 of byte 39 are weight 199.
    let q2k = row(BlockType::Q2K, &[(81, one), (83, one), (0, 0x23), (12, 5), (16, 3), (16 + 39, 0x20)]);
    assert_eq!((q2k[0], q2k[1], q2k[199]), (7.0, -2.0, 10.0));
    // Scale 0 is 32 + 1 and weight 2 lacks its high bit; scale 13 is 32 + 3, and weight 210 has it.
    let q3k = [
        (109, one),
        (96, 1),
        (104, 2),
        (96 + 5, 0x30),
        (105, 0x80),
        (18, 0x40),
        (32 + 2, 1),
        (32 + 50, 0x20),
    ];
    let q3k = row(BlockType::Q3K, &q3k);
    assert_eq!((q3k[2], q3k[0], q3k[210], q3k[208]), (-3.0, -4.0, 6.0, -12.0));
    let iq4_nl = row(BlockType::Iq4Nl, &[(1, one), (2 + 3, 0xb2)]);
    assert_eq!((iq4_nl[3], iq4_nl[19], iq4_nl[4]), (-83.0, 38.0, -127.0));
    // Group 5 has the scale 2 * 16 + 7 - 32 = 7.
    let iq4_xs = row(BlockType::Iq4Xs, &[(1, one), (3, 0x08), (4 + 2, 0x70), (8 + 5 * 16 + 4, 0x8f)]);
    assert_eq!((iq4_xs[164], iq4_xs[180], iq4_xs[0]), (7.0 * 113.0, 7.0, 32.0 * 127.0));
    // 2^(127 - 128) times twice the value: 6.0 is code 7, -1.0 is code 10.
    let mxfp4 = row(BlockType::Mxfp4, &[(0, 127), (1 + 2, 0xa7)]);
    assert_eq!((mxfp4[2], mxfp4[18], mxfp4[3]), (6.0, -1.0, 0.0));
    // Group 2 has the scale 1.5: exponent 7, mantissa 4.
    let nvfp4 = row(BlockType::Nvfp4, &[(2, 0x3c), (4 + 2 * 8 + 1, 0xa7)]);
    assert_eq!((nvfp4[33], nvfp4[41], nvfp4[32]), (9.0, -1.5, 0.0));
    // 200 / 256 begins with 0.21000 in base 3, 128 / 256 with 0.1.
    let tq1_0 = row(BlockType::Tq1_0, &[(53, one), (3, 200), (32 + 1, 128), (51, 200)]);
    assert_eq!([3, 35, 67, 99, 131].map(|i| tq1_0[i]), [1.0, 0.0, -1.0, -1.0, -1.0]);
    assert_eq!((tq1_0[161], tq1_0[243], tq1_0[247], tq1_0[251]), (0.0, 1.0, 0.0, -1.0));
    let tq2_0 = row(BlockType::Tq2_0, &[(65, one), (32 + 7, 0x20)]);
    assert_eq!((tq2_0[128 + 64 + 7], tq2_0[128 + 32 + 7]), (1.0, -1.0));
    let q1_0 = row(BlockType::Q1_0, &[(1, one), (2 + 15, 0x80)]);
    assert_eq!((q1_0[127], q1_0[126]), (1.0, -1.0));
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
            if kind == BlockType::Mxfp4 {
                // The largest exponents are those of infinity once weights are multiplied with them.
                let exponent = |block: &mut [u8]| block[0] &= 0x7f;
                bytes[row_bytes * 3..].chunks_exact_mut(kind.bytes()).for_each(exponent);
            }
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
                    let spread = halves(kind).is_empty() || y[1].is_nan() && !y[2].is_finite();
                    assert!(spread && y[3].is_finite(), "{}, {kind:?}: {y:?}", backend.name());
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

/// An expert of a stacked tensor is a range of its rows: the bytes of whole rows are a matrix as they stand, and give what
/// the same rows give within the whole.
#[test]
fn a_range_of_rows_is_a_matrix() {
    let mut rng = Rng(44);
    for kind in BlockType::ALL {
        let (inputs, outputs, first, last) = (3 * kind.len(), 50, 17, 41);
        let whole = matrix(kind, outputs, inputs, &mut rng);
        let MatrixData::Blocks(_, bytes) = whole.data() else { panic!("{kind:?}") };
        let row_bytes = kind.row_bytes(inputs).unwrap();
        let range = Buffer::from_slice(&bytes[first * row_bytes..last * row_bytes]);
        let range = Matrix::new(last - first, inputs, MatrixData::Blocks(kind, range)).unwrap();
        assert_eq!(range.bytes(), (last - first) * row_bytes);
        for rows in [1, 20] {
            let x: Vec<f32> = (0..rows * inputs).map(|_| rng.normal()).collect();
            for [backend, ..] in backends() {
                let (mut all, mut some) = (vec![0.0; rows * outputs], vec![0.0; rows * (last - first)]);
                backend.linear(&x, rows, &whole, None, &mut all);
                backend.linear(&x, rows, &range, None, &mut some);
                for (all, some) in all.chunks_exact(outputs).zip(some.chunks_exact(last - first)) {
                    assert_eq!(&all[first..last], some, "{}, {kind:?}, {rows} rows", backend.name());
                }
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

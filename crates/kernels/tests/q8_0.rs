//! Q8_0 weights on every path against the reference, whose rows are unpacked one by one.

use reattention_kernels::cpu::Path;
use reattention_kernels::{Backend, Buffer, Cpu, Matrix, MatrixData, Reference, f16};

/// Blocks with scales of either sign and every byte.
fn matrix(rows: usize, cols: usize) -> Matrix {
    let mut bytes = Buffer::<u8>::zeroed(rows * cols / 32 * 34);
    let mut state = 12345u32;
    for block in bytes.chunks_exact_mut(34) {
        for b in block.iter_mut() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *b = (state >> 24) as u8;
        }
        let scale = f16::from_f32(f32::from(block[0] as i8) / 10_000.0);
        block[..2].copy_from_slice(&scale.to_le_bytes());
    }
    Matrix::new(rows, cols, MatrixData::Q8_0(bytes)).unwrap()
}

fn wave(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * step).sin()).collect()
}

#[test]
fn products_agree_with_the_reference() {
    for path in Path::available() {
        for threads in [1, 2] {
            let cpu = Cpu::with_path(threads, path).unwrap();
            for (rows, outputs, inputs) in [
                (1, 1, 32),
                (1, 130, 64),
                (2, 33, 96),
                (3, 700, 896),
                (4, 17, 256),
                (5, 600, 128),
                (40, 1030, 64),
            ] {
                let (w, x, bias) = (matrix(outputs, inputs), wave(rows * inputs, 0.37), wave(outputs, 0.11));
                let (mut want, mut got) = (vec![0.0; rows * outputs], vec![7.0; rows * outputs]);
                Reference.linear(&x, rows, &w, Some(&bias), &mut want);
                cpu.linear(&x, rows, &w, Some(&bias), &mut got);
                // Few rows compute in f32; many round weights, and on some paths activations, to bf16.
                let tolerance = if rows <= 4 { 1e-5 } else { 2e-2 };
                let scale = want.iter().fold(1.0f32, |m, w| m.max(w.abs()));
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    assert!(
                        (g - w).abs() <= tolerance * scale,
                        "{path}, {rows} x {outputs} x {inputs}: {i}: {g}, {w}"
                    );
                }
            }
        }
    }
}

#[test]
fn blocks_are_counted() {
    assert!(Matrix::new(2, 32, MatrixData::Q8_0(Buffer::zeroed(68))).is_ok());
    for (rows, cols, bytes) in [(2, 32, 67), (2, 32, 34), (4, 16, 68), (1, 48, 51)] {
        assert!(
            Matrix::new(rows, cols, MatrixData::Q8_0(Buffer::zeroed(bytes))).is_err(),
            "{rows} x {cols}, {bytes} bytes"
        );
    }
    let w = matrix(3, 64);
    let mut row = vec![0.0; 64];
    w.copy_row(2, &mut row);
    let MatrixData::Q8_0(bytes) = w.data() else { unreachable!() };
    let block = &bytes[5 * 34..6 * 34];
    assert_eq!(row[33], f16::from_le_bytes([block[0], block[1]]).to_f32() * f32::from(block[3] as i8));
    assert_eq!(w.bytes(), 6 * 34);
}

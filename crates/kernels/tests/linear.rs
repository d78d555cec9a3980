//! Dense layers, norms and activations of every path against the plain backend.

mod common;
use common::{Rng, assert_close, backends};
use reattention_kernels::{Activation, Backend, Buffer, Matrix, MatrixData, Reference, bf16, f16};

fn matrix(kind: usize, rows: usize, cols: usize, rng: &mut Rng) -> Matrix {
    let values: Vec<f32> = (0..rows * cols).map(|_| rng.normal()).collect();
    let data = match kind {
        0 => MatrixData::F32(Buffer::from_slice(&values)),
        1 => {
            MatrixData::F16(Buffer::from_slice(&values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()))
        }
        _ => MatrixData::Bf16(Buffer::from_slice(
            &values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(),
        )),
    };
    Matrix::new(rows, cols, data).expect("matching sizes")
}

fn check(rows: usize, inputs: usize, outputs: usize, kind: usize, with_bias: bool, rng: &mut Rng) {
    let w = matrix(kind, outputs, inputs, rng);
    // Exact in bf16, so that no path rounds the activations.
    let x: Vec<f32> = (0..rows * inputs).map(|_| bf16::from_f32(rng.normal()).to_f32()).collect();
    let bias: Vec<f32> = (0..outputs).map(|_| rng.normal()).collect();
    let bias = with_bias.then_some(&bias[..]);
    let mut want = vec![f32::NAN; rows * outputs];
    Reference.linear(&x, rows, &w, bias, &mut want);
    for backends in backends() {
        let what = format!("{}: {rows} x {inputs} -> {outputs}, type {kind}", backends[0].name());
        let mut first = Vec::new();
        for backend in &backends {
            let mut got = vec![f32::NAN; rows * outputs];
            backend.linear(&x, rows, &w, bias, &mut got);
            assert_close(&got, &want, 2e-6 * (inputs as f32).sqrt().max(4.0), &what);
            if first.is_empty() {
                first = got;
            } else {
                assert!(first == got, "{what}: depends on the number of threads");
            }
        }
    }
}

#[test]
fn linear_agrees_with_the_reference() {
    let mut rng = Rng(1);
    for round in 0..120 {
        let rows = rng.pick(&[1, 1, 2, 3, 4, 5, 6, 7, 12, 13, 33, 70]);
        let (inputs, outputs) = (rng.int(1, 200), rng.int(1, 150));
        check(rows, inputs, outputs, round % 3, round % 2 == 0, &mut rng);
    }
    for kind in 0..3 {
        check(300, 64, 72, kind, true, &mut rng);
        check(17, 4100, 130, kind, true, &mut rng);
        check(1, 1024, 3000, kind, false, &mut rng);
        check(9, 512, 1100, kind, false, &mut rng);
    }
    check(40, 2, 1, 2, true, &mut rng);
}

#[test]
fn activations_of_bf16_layers_are_rounded_at_most_once() {
    let mut rng = Rng(2);
    let (rows, inputs, outputs) = (24, 256, 96);
    let w = matrix(2, outputs, inputs, &mut rng);
    let x: Vec<f32> = (0..rows * inputs).map(|_| rng.normal()).collect();
    let mut want = vec![0.0; rows * outputs];
    Reference.linear(&x, rows, &w, None, &mut want);
    for [backend, ..] in backends() {
        let mut got = vec![0.0; rows * outputs];
        backend.linear(&x, rows, &w, None, &mut got);
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|e| f64::from(e * e)).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
        assert!(error < 3e-3, "{}: relative error {error}", backend.name());
    }
}

#[test]
fn norms_and_activations_agree_with_the_reference() {
    let mut rng = Rng(3);
    for (rows, dim) in [(1, 1), (1, 64), (3, 7), (5, 33), (2, 896), (70, 1030), (0, 16)] {
        let x: Vec<f32> = (0..rows * dim).map(|_| rng.normal() * 5.0).collect();
        let weight: Vec<f32> = (0..dim).map(|_| rng.normal()).collect();
        let mut want = vec![0.0; rows * dim];
        Reference.rms_norm(&x, &weight, 1e-6, &mut want);
        let up: Vec<f32> = (0..rows * dim).map(|_| rng.normal()).collect();
        let activations =
            [Activation::Silu, Activation::GeluTanh, Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 }];
        let want_gated = activations.map(|activation| {
            let mut want = x.clone();
            Reference.gate(activation, &mut want, &up);
            want
        });
        for backend in backends().iter().flatten() {
            let what = format!("{}: {rows} x {dim}", backend.name());
            let mut got = vec![0.0; rows * dim];
            backend.rms_norm(&x, &weight, 1e-6, &mut got);
            assert_close(&got, &want, 2e-6, &what);
            for (activation, want) in activations.into_iter().zip(&want_gated) {
                let mut got = x.clone();
                backend.gate(activation, &mut got, &up);
                assert_close(&got, want, 3e-6, &format!("{what}, {activation:?}"));
            }
        }
    }
}

#[test]
fn silu_holds_at_the_ends() {
    let gate =
        [0.0f32, -0.0, 1e-30, 20.0, -20.0, 88.0, -88.0, 1000.0, -1000.0, 3e38, -3e38, f32::INFINITY, 1.0];
    for backend in backends().iter().flatten() {
        let mut got = gate;
        backend.silu_mul(&mut got, &[1.0; 13]);
        for (g, x) in got.iter().zip(gate) {
            let want = if x < -80.0 { 0.0 } else { (f64::from(x) / (1.0 + (-f64::from(x)).exp())) as f32 };
            let close = *g == want || (g - want).abs() <= 1e-6 * want.abs() + 1e-30;
            assert!(close, "{}: silu({x}) is {g}, expected {want}", backend.name());
        }
        let mut got = [f32::NAN, 1.0];
        backend.silu_mul(&mut got, &[1.0; 2]);
        assert!(got[0].is_nan() && got[1] > 0.7, "{}", backend.name());
    }
}

#[test]
fn activations_have_the_values_of_their_formulas() {
    let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    let cases = [
        (Activation::GeluTanh, 1.0, 1.0, 0.841_192),
        (Activation::GeluTanh, -2.0, 3.0, 3.0 * -0.045_402_3),
        (Activation::GeluTanh, -3e38, 1.0, 0.0),
        (Activation::GeluTanh, 1e20, 1.0, 1e20),
        (clamped, 0.5, -0.25, 0.5 * 0.700_776_9 * 0.75),
        (clamped, 10.0, -9.0, 7.0 * 0.999_993_3 * -6.0),
        // From below only the product is bounded.
        (clamped, -8.0, 9.0, -8.0 * 1.220_804e-6 * 8.0),
        (clamped, -3e38, 1.0, 0.0),
    ];
    let (cpus, plain) = (backends(), Reference);
    let all = cpus.iter().flatten().map(|cpu| cpu as &dyn Backend).chain([&plain as &dyn Backend]);
    for backend in all {
        for (activation, gate, up, want) in cases {
            let mut got = [gate];
            backend.gate(activation, &mut got, &[up]);
            let what = format!("{}: {activation:?} of {gate} and {up}", backend.name());
            // Below 1e-30 a number is none: what the fast exponential leaves of the largest negative ones.
            let close = (got[0] - want).abs() <= 2e-5 * want.abs() + 1e-30;
            assert!(close, "{what} is {}, expected {want}", got[0]);
            let mut bad = [f32::NAN, 1.0];
            backend.gate(activation, &mut bad, &[1.0, f32::NAN]);
            assert!(bad.iter().all(|x| x.is_nan()), "{what}: {bad:?}");
        }
    }
}

//! All kernels compile under NVRTC for the architectures of A100, H100 and B200, without a word.
//!
//! NVRTC needs neither a GPU nor a driver. Where it is not installed the tests say so and pass.

use cuda_emulator::skipped;
use reattention_cuda::driver::{CudaError, Module};
use reattention_cuda::nvidia::{check_compiler, compile};
use reattention_cuda::testing::elementwise;
use reattention_cuda::testing::families::families;
use std::sync::Mutex;

const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100a"];

fn is_there() -> bool {
    match check_compiler() {
        Ok(()) => true,
        Err(error) => {
            skipped("nvrtc", &format!("skipped: no NVRTC ({error})"));
            false
        }
    }
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    if !is_there() {
        return;
    }
    let families = families();
    let variants = families.iter().flat_map(|f| f.variants.iter().map(|v| (f.module, v)));
    let jobs: Vec<_> = variants.flat_map(|job| ARCHITECTURES.map(|a| (job, a))).collect();
    assert!(jobs.len() >= 3 * families.len() && !jobs.is_empty(), "every family has variants");

    let (next, failures) = (Mutex::new(jobs.iter()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let Some(((module, defines), architecture)) = next.lock().unwrap().next() else { return };
            match compile(module, defines, architecture) {
                Ok(code) => assert!(
                    code.starts_with(b"\x7fELF"),
                    "{} for {architecture} is no machine code",
                    module.name
                ),
                Err(error) => failures.lock().unwrap().push(format!("with {defines:?}: {error}")),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), jobs.len(), failures.join("\n\n"));
}

#[test]
fn a_device_newer_than_the_compiler_gets_ptx() {
    if is_there() {
        let code = compile(&elementwise::MODULE, &[("ELEMENT", 0)], "compute_90").unwrap();
        let text = std::str::from_utf8(&code).unwrap();
        assert!(
            text.contains(".target sm_90") && text.contains(".entry argmax") && text.ends_with('\0'),
            "{text}"
        );
    }
}

/// What the compiler says of a text.
fn log_of(text: &'static str, architecture: &str) -> String {
    match compile(&Module { name: "test", text }, &[("ELEMENT", 0)], architecture) {
        Err(CudaError::Compile { module: "test", architecture: named, log }) if named == architecture => log,
        other => panic!("{other:?}"),
    }
}

#[test]
fn warnings_errors_and_wrong_architectures_are_refused_with_the_compilers_words() {
    if !is_there() {
        return;
    }
    let warning = log_of(
        "extern \"C\" __global__ void kernel(float *y) {\n    int i = 3;\n    y[0] = 1;\n}\n",
        "sm_90a",
    );
    assert!(warning.contains("test.cu(2)") && warning.contains("never referenced"), "{warning}");
    let error = log_of("\nextern \"C\" __global__ void kernel(float *y) { y[0] = x; }\n", "sm_80");
    assert!(error.contains("test.cu(2)") && error.contains("undefined"), "{error}");
    for architecture in ["sm_12", "sm_80a", "hopper"] {
        let log = log_of("extern \"C\" __global__ void kernel(float *y) { y[0] = 1; }\n", architecture);
        assert!(log.contains("arch"), "{architecture}: {log}");
    }
    let good = Module { name: "test", text: "extern \"C\" __global__ void kernel(float *y) { y[0] = 1; }\n" };
    compile(&good, &[("ELEMENT", 0)], "sm_80").unwrap();
}

//! A device that fails: a step either took place or left nothing behind, whichever of its calls it was that failed.

use cuda_emulator::{Emulator, facts};
use reattention::methods::{Step, StepKind, build};
use reattention::{Context, KvDtype, Settings};
use reattention_cuda::driver::{Address, Arg, Driver, Facts, Function, Launch, Module, Pinned, Product};
use reattention_cuda::{Cuda, CudaError, Offload};
use reattention_kernels::{Backend, Cpu};
use reattention_model::synth::{DenseType, Shape, write_hugging_face};
use reattention_model::{Checkpoint, Logits, Model, Scratch};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A device of which one copy to the host fails.
#[derive(Debug)]
struct Faulty {
    device: Emulator,
    /// Copies that still succeed before that.
    sound: AtomicUsize,
}

impl Faulty {
    fn check(&self) -> Result<(), CudaError> {
        let before = self.sound.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        match before {
            // Once, and from then on it is sound.
            Err(_) => {
                self.sound.store(usize::MAX, Ordering::Relaxed);
                Err(CudaError::Call { call: "the copy", reason: "the test wants it so".into() })
            }
            Ok(_) => Ok(()),
        }
    }
}

// SAFETY: every call goes to the emulator, which keeps the contract, or fails and does nothing.
unsafe impl Driver for Faulty {
    fn facts(&self) -> &Facts {
        self.device.facts()
    }

    fn free_memory(&self) -> Result<usize, CudaError> {
        self.device.free_memory()
    }

    fn alloc(&self, bytes: usize) -> Result<Address, CudaError> {
        self.device.alloc(bytes)
    }

    unsafe fn free(&self, at: Address) {
        // SAFETY: the caller's promise.
        unsafe { self.device.free(at) }
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        self.device.alloc_pinned(bytes)
    }

    unsafe fn free_pinned(&self, at: Pinned) {
        // SAFETY: the caller's promise.
        unsafe { self.device.free_pinned(at) }
    }

    unsafe fn upload(&self, data: &[u8], to: Address) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.device.upload(data, to) }
    }

    unsafe fn download(&self, from: Address, data: &mut [u8]) -> Result<(), CudaError> {
        self.check()?;
        // SAFETY: the caller's promise.
        unsafe { self.device.download(from, data) }
    }

    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.device.clear(at, bytes) }
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.device.copy(from, to, bytes) }
    }

    fn function(
        &self,
        module: &Module,
        defines: &[(&'static str, i64)],
        name: &'static str,
    ) -> Result<Function, CudaError> {
        self.device.function(module, defines, name)
    }

    unsafe fn launch(&self, function: Function, launch: Launch, args: &[Arg]) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.device.launch(function, launch, args) }
    }

    unsafe fn multiply(&self, product: &Product) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.device.multiply(product) }
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.device.wait()
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        self.device.time(work)
    }
}

/// Losses are read after the last layer, views under `full` before it, and those of `infinipot` on the host.
const ARMS: &[(&str, &[&str])] = &[
    ("infinipot", &["pot=32", "keep=16", "global=2", "chunk=16", "catalyst=ids:7,8,9"]),
    ("reattention", &["global=2", "local=16", "span=4", "clip=3", "chunk=16", "top_k=2"]),
];

#[test]
fn a_step_whose_device_fails_leaves_nothing_behind() {
    let device = match Emulator::new(facts()) {
        Ok(device) => Arc::new(Faulty { device, sound: AtomicUsize::new(usize::MAX) }),
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let backend: Arc<dyn Backend> = {
        let driver: Arc<dyn Driver> = Arc::clone(&device) as Arc<dyn Driver>;
        Arc::new(Cuda::on(driver, Cpu::new(1).unwrap(), Offload::Off))
    };
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &Shape::tiny("llama"), DenseType::F32, 5, None).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let model = Model::new(checkpoint.config().clone(), checkpoint.load().unwrap());
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 1) % 250).collect();
    for (method, settings) in ARMS {
        // The logits of every token, and how often a step had to be taken again when the `sound`-th copy failed.
        let run = |sound: usize| {
            let built = build(method, &Settings::parse(settings).unwrap(), model.shape()).unwrap();
            let mut context = Context::new(model.shape(), built, None, KvDtype::F32, Arc::clone(&backend));
            let (mut all, mut scratch, mut failures) = (Vec::new(), Scratch::default(), 0);
            let mut steps = context.schedule(0..ids.len() - 2, None);
            let last = ids.len() - 2..ids.len();
            steps.extend(last.map(|i| Step { tokens: i..i + 1, kind: StepKind::Decode }));
            device.sound.store(sound, Ordering::Relaxed);
            for step in steps {
                let tokens = &ids[step.tokens.clone()];
                loop {
                    let start = context.len();
                    match model.forward(tokens, &step, &mut context, &mut scratch, &Logits::All, None) {
                        Ok(logits) => {
                            all.extend(logits);
                            break;
                        }
                        Err(error) => {
                            failures += 1;
                            assert!(!error.is_refusal(), "{error}");
                            assert_eq!(context.len(), start, "{method}: copy {sound} failed in {step:?}");
                        }
                    }
                }
                assert_eq!(context.len(), step.tokens.end);
            }
            let is_over = device.sound.swap(usize::MAX, Ordering::Relaxed) < 1 << 40;
            (all, failures, is_over)
        };
        let (want, failures, _) = run(usize::MAX);
        assert_eq!(failures, 0);
        let mut failed = 0;
        for sound in 0.. {
            let (got, failures, is_over) = run(sound);
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(
                got.len() == want.len() && worst < 1e-3,
                "{method}: copy {sound} changes logits by {worst}"
            );
            failed += failures;
            if is_over {
                break;
            }
        }
        assert!(failed > 5, "{method}: {failed} copies failed");
    }
}

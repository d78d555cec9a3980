//! The kernel tables are made of runs that run, at sizes that an emulated device gets through.

use reattention_cuda::bench::Sizes;
use reattention_cuda::{Cuda, Offload};
use reattention_kernels::Cpu;

#[test]
fn every_kernel_is_measured_beside_its_limit() {
    let Some(driver) = cuda_emulator::device() else { return };
    let cuda = Cuda::on(driver, Cpu::new(1).unwrap(), Offload::Off);
    let sizes = Sizes { matrix: 32, copy: 1 << 16, q_len: 3, prefill_keys: 200, decode_keys: 300, view: 70 };
    let mut seen = Vec::new();
    let records = cuda.bench(sizes, 2, "", &mut |r| seen.push(r.name.clone())).unwrap();
    assert_eq!(seen, records.iter().map(|r| r.name.clone()).collect::<Vec<_>>());
    for part in [
        "linear.bf16.prefill",
        "linear.bf16.decode",
        "top_k.bf16.prefill",
        "top_k.bf16.decode",
        "attend.bf16.prefill",
        "attend.bf16.decode",
    ] {
        let of_kind = records.iter().filter(|r| r.name.starts_with(part));
        assert_eq!(of_kind.count(), 2, "{part}: two shapes each");
    }
    assert!(records.iter().all(|r| r.value > 0.0 && r.limit > 0.0 && r.of_limit > 0.0), "{records:?}");
    let some = cuda.bench(sizes, 1, "top_k", &mut |_| {}).unwrap();
    assert_eq!(some.len(), 4);
}

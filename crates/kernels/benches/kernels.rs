//! Prints how close each kernel comes to the limits of this machine.
//!
//! `cargo bench -p reattention-kernels -- [NAME] [threads=N] [rounds=N]`, where NAME is a part of a kernel's name. Weights in
//! blocks are measured beside the same weights in bf16; `reattn bench --kernels` also beside candle's product.

use reattention_kernels::cpu::CpuError;
use reattention_kernels::{Backend, Cpu, bench};

fn main() -> Result<(), CpuError> {
    let (mut threads, mut rounds, mut only) =
        (std::thread::available_parallelism().map_or(1, |n| n.get()), 11, String::new());
    // Cargo itself passes `--bench`.
    for argument in std::env::args().skip(1).filter(|a| !a.starts_with('-')) {
        match argument.split_once('=').map(|(name, value)| (name, value.parse())) {
            Some(("threads", Ok(n))) => threads = n,
            Some(("rounds", Ok(n))) => rounds = n,
            _ => only = argument,
        }
    }
    let cpu = Cpu::new(threads)?;
    println!("{}", cpu.name());
    println!("{:48} {:>10} {:>10} {:8} {:>6} {:>6}", "kernel", "value", "limit", "unit", "ratio", "goal");
    bench::run(&cpu, rounds, &only, None, |r| {
        println!(
            "{:48} {:10.1} {:10.1} {:8} {:6.2} {:6.2}",
            r.name, r.value, r.limit, r.unit, r.of_limit, r.goal
        );
    });
    Ok(())
}

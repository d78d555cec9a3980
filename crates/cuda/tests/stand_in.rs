//! The layer of NVIDIA's calls without a GPU: a library stands in for driver, NVRTC and cuBLASLt.
//!
//! It must be found when a process starts, so each test starts this executable once more and has it run the tests that it names:
//! those of `device.rs`, which a real GPU gets too, and those here that are ignored otherwise.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;
mod device;
#[path = "stand_in/inside.rs"]
mod inside;

use cuda_stand_in::{install, variables};
use std::path::Path;
use std::process::Command;

/// Runs the tests whose names start with `tests` in a process of their own, for a device of these variables; none may skip, and
/// all is given back.
fn run(tests: &str, variables: &[(&str, &str)]) {
    let cache = tempfile::tempdir().unwrap();
    run_with(tests, variables, cache.path(), true);
}

fn run_with(tests: &str, variables: &[(&str, &str)], cache: &Path, all_given_back: bool) {
    if cuda_emulator::device().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    match install(folder.path()) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            return cuda_emulator::skipped("compiler", &format!("skipped: {error}"));
        }
        installed => installed.unwrap(),
    }
    // Before what is there already, which compilers may need.
    let before = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = std::iter::once(folder.path().to_owned()).chain(std::env::split_paths(&before));
    let output = Command::new(std::env::current_exe().unwrap())
        .args([tests, "--include-ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", std::env::join_paths(paths).unwrap())
        .env("REATTENTION_CACHE", cache)
        .env("RUST_BACKTRACE", "0")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let what = format!("{tests} with {variables:?}:\n{out}\n{err}");
    assert!(output.status.success() && !out.contains("running 0 tests"), "{what}");
    assert!(!out.contains("skipped"), "{what}");
    let left = ["stand-in:", "never given back"].iter().any(|text| err.contains(text));
    assert!(!all_given_back || !left, "{what}");
}

#[test]
fn what_a_gpu_does_the_stand_in_does() {
    run("device::", &[]);
}

#[test]
fn devices_without_pools_do() {
    run("device::", &[(variables::POOLS, "0")]);
    run("inside::memory", &[(variables::POOLS, "0"), (variables::MEMORY, "67108864")]);
}

#[test]
fn devices_that_the_compiler_does_not_know_get_portable_code() {
    run("device::kernels_run", &[(variables::CAPABILITY, "9.1")]);
    run(
        "inside::drivers_may_be_too_old_for_portable_code",
        &[(variables::CAPABILITY, "9.1"), (variables::DRIVER, "12040")],
    );
}

#[test]
fn facts_memory_copies_and_products() {
    run("inside::facts_are", &[]);
    run("inside::memory", &[(variables::MEMORY, "67108864"), (variables::PINNED, "16777216")]);
    run("inside::uploads", &[]);
    run("inside::pinned", &[]);
    run("inside::products", &[]);
    run("inside::threads", &[]);
}

#[test]
fn searches_and_attention_are_those_of_the_emulator() {
    run("inside::searches", &[]);
}

#[test]
fn what_cannot_be_used_is_refused_in_words() {
    run("inside::no_device", &[(variables::DEVICES, "0")]);
    run("inside::too_old", &[(variables::CAPABILITY, "7.5")]);
    run("inside::old_driver", &[(variables::DRIVER, "11080")]);
    let cache = tempfile::tempdir().unwrap();
    run_with("inside::kernels_that_fail", &[], cache.path(), false);
    run("inside::texts_that_do_not_compile", &[]);
}

#[test]
fn kernels_are_kept_for_the_next_process() {
    let cache = tempfile::tempdir().unwrap();
    run_with("inside::nothing_compiles", &[(variables::COMPILER, "0")], cache.path(), true);
    run_with("device::kernels_run", &[], cache.path(), true);
    run_with("device::kernels_run", &[(variables::COMPILER, "0")], cache.path(), true);
}

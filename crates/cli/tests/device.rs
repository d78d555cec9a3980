//! What the command says of devices that are not there.

use assert_cmd::Command;
use reattention_cuda::nvidia::Nvidia;

fn reattn(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::cargo_bin("reattn").unwrap().args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_gpu_that_is_not_there_is_named_in_one_line_and_auto_goes_on_without() {
    if Nvidia::open(0).is_ok() {
        println!("skipped: there is a CUDA device");
        return;
    }
    let demo = ["demo", "--tokens", "2k", "--facts", "1"];
    let (code, out, err) = reattn(&[&demo[..], &["--device", "cuda"]].concat());
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    let line = err.lines().last().unwrap_or_default();
    assert!(line.contains("is not there") || line.contains("there is no CUDA device"), "{err}");
    let (code, out, err) = reattn(&[&demo[..], &["--device", "auto"]].concat());
    assert_eq!(code, Some(0), "{err}");
    assert!(err.lines().any(|l| l.starts_with("computing on the CPU: ")), "{err}");
    assert!(out.ends_with("found 1 of 1\n"), "{out}");
}

/// A folder with a library that stands in for NVIDIA's and runs kernels on the CPU; without its tools it says so.
fn stand_in() -> Option<tempfile::TempDir> {
    cuda_emulator::device()?;
    let folder = tempfile::tempdir().unwrap();
    match cuda_stand_in::install(folder.path()) {
        Ok(()) => Some(folder),
        Err(error) => {
            cuda_emulator::skipped("compiler", &format!("skipped: {error}"));
            None
        }
    }
}

/// `reattn demo` on that device.
fn demo(folder: &std::path::Path, flags: &[&str], variables: &[(&str, &str)]) -> std::process::Output {
    let before = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&before));
    Command::cargo_bin("reattn")
        .unwrap()
        .env("LD_LIBRARY_PATH", std::env::join_paths(paths).unwrap())
        .env("REATTENTION_CACHE", folder.join("cache"))
        .envs(variables.iter().copied())
        .args(["demo", "--tokens", "1k", "--facts", "1", "--device", "cuda"])
        .args(flags)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The whole command on a GPU that is none.
#[test]
fn the_command_finds_its_facts_on_a_gpu_that_is_stood_in_for() {
    let Some(folder) = stand_in() else { return };
    for flags in [&["--kv-offload", "values"][..], &["--set", "selector=boxes", "--set", "exact_below=256"]] {
        let output = demo(folder.path(), flags, &[]);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && out.ends_with("found 1 of 1\n"), "{flags:?}: {out}\n{err}");
        assert!(err.contains("on stand-in: weights"), "{flags:?}: {err}");
    }
}

/// Neither where all is on the device nor where attention copies its keys there.
#[test]
fn a_gpu_that_fails_is_an_error_and_not_the_cpu() {
    let Some(folder) = stand_in() else { return };
    let by_host = ["--set", "share=kv_head", "--set", "exact_below=256"];
    for flags in [&[][..], &by_host] {
        let output = demo(folder.path(), flags, &[(cuda_stand_in::variables::FAILS, "300")]);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {out}\n{err}");
        // What was hidden is told before the device is asked for anything.
        assert!(!out.contains("found") && out.lines().count() == 1, "{flags:?}: {out}");
        let line = err.lines().last().unwrap_or_default();
        assert!(line.starts_with("reattn: ") && line.contains("stand-in: "), "{flags:?}: {err}");
        assert!(!err.contains("CPU"), "{flags:?}: {err}");
    }
}

#[test]
fn devices_and_flags_that_make_no_sense_are_refused() {
    for (args, want) in [
        (&["--device", "gpu"][..], "known are cpu, cuda, cuda:N and auto"),
        (&["--device", "cuda:x"], "known are cpu, cuda, cuda:N and auto"),
        (&["--kv-offload", "some"], "known are off, values and old"),
        (&["--kv-offload", "values"], "--kv-offload is for --device cuda"),
        (&["--device", "auto", "--backend", "reference"], "leave --device out"),
    ] {
        let (code, _, err) = reattn(&[&["demo", "--tokens", "2k"][..], args].concat());
        assert_eq!(code, Some(2), "{args:?}: {err}");
        assert!(err.contains(want), "{args:?}: {err}");
    }
    let (code, _, err) = reattn(&["bench", "--profile", "--device", "auto", "--lengths", "1k"]);
    assert!(code == Some(2) && err.contains("--profile measures the CPU"), "{err}");
}

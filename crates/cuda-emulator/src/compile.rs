//! Kernel text compiled for the CPU, kept as shared libraries beside the test's executable.

use crate::NoCompiler;
use reattention_cuda::driver::{CudaError, Module};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

const FIBERS: &str = include_str!("../fibers.hpp");
const CUDA: &str = include_str!("../cuda.hpp");

/// How the machine's compiler is called. Types are punned freely in kernels; contracted products would differ from machine to
/// machine.
const OPTIONS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
    "-Wno-attributes",
    "-Werror=return-type",
    "-Werror=vla",
    // Two such frames fit on the stack of a thread.
    "-Wframe-larger-than=32768",
];

/// `uint3` of `fibers.hpp`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Uint3 {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) z: u32,
}

/// `Order` of `fibers.hpp`: what one block needs.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Order {
    pub(crate) block: Uint3,
    pub(crate) grid: Uint3,
    pub(crate) threads: u32,
    pub(crate) seed: u64,
    pub(crate) shared: *mut u8,
    pub(crate) shared_bytes: u64,
    pub(crate) guard: u64,
    pub(crate) stacks: *mut u8,
    pub(crate) stack_bytes: u64,
    pub(crate) args: *const u64,
    pub(crate) failure: *mut u8,
    pub(crate) failure_bytes: u64,
}

type Entry = unsafe extern "C" fn(*const u64);

/// `Kernel` of `fibers.hpp`: a row of a library's table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Row {
    name: *const c_char,
    parameters: *const c_char,
    entry: Option<Entry>,
    run: Option<unsafe extern "C" fn(Entry, *const Order) -> c_int>,
}

/// A compiled family of kernels. It is never unloaded.
#[derive(Debug)]
pub(crate) struct Library {
    rows: &'static [Row],
    /// Shared arrays and fibers are there once: one launch at a time.
    pub(crate) running: Mutex<()>,
}

// SAFETY: the table is constant, and what it points to lives as long as the process.
unsafe impl Send for Library {}
// SAFETY: as above; launches are kept apart by `running`.
unsafe impl Sync for Library {}

/// A kernel that can run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    pub(crate) library: &'static Library,
    pub(crate) name: &'static str,
    /// A letter for each parameter: pointer, int, long, float.
    pub(crate) parameters: &'static str,
    row: Row,
}

// SAFETY: as for `Library`.
unsafe impl Send for Kernel {}

impl Kernel {
    /// Runs one block; the text of what went wrong is left in `order.failure` if the answer is false.
    ///
    /// # Safety
    /// `order` describes memory that is there, its arguments fit the kernel, and `library.running` is held.
    pub(crate) unsafe fn run(&self, order: &Order) -> bool {
        let (Some(run), Some(entry)) = (self.row.run, self.row.entry) else {
            unreachable!("rows of absent kernels are not handed out")
        };
        // SAFETY: promised by the caller.
        unsafe { run(entry, order) == 0 }
    }
}

impl Library {
    /// The kernel of that name, unless the text leaves it out.
    pub(crate) fn kernel(&'static self, name: &str) -> Option<Kernel> {
        // SAFETY: names are strings of the library, which is never unloaded.
        let named = |row: &Row| unsafe { CStr::from_ptr(row.name) }.to_str().ok();
        let row = *self.rows.iter().find(|row| named(row) == Some(name))?;
        if row.parameters.is_null() {
            return None;
        }
        // SAFETY: as above.
        let (name, parameters) = unsafe { (CStr::from_ptr(row.name), CStr::from_ptr(row.parameters)) };
        Some(Kernel { library: self, name: name.to_str().ok()?, parameters: parameters.to_str().ok()?, row })
    }
}

/// The compiler and what it says of its version.
pub(crate) fn compiler() -> Result<&'static (String, String), NoCompiler> {
    static FOUND: OnceLock<Result<(String, String), NoCompiler>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        if !cfg!(all(unix, any(target_arch = "x86_64", target_arch = "aarch64"))) {
            return Err(NoCompiler { tried: "none on this kind of machine".into() });
        }
        let command = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        match Command::new(&command).arg("--version").output() {
            Ok(output) if output.status.success() => {
                Ok((command, String::from_utf8_lossy(&output.stdout).into_owned()))
            }
            _ => Err(NoCompiler { tried: command }),
        }
    });
    found.as_ref().map_err(Clone::clone)
}

/// The library of `common` and a family after it, with each of `defines` as a macro.
pub(crate) fn library(
    common: &str,
    module: &Module,
    defines: &[(&'static str, i64)],
) -> Result<&'static Library, CudaError> {
    type Slot = Arc<Mutex<Option<&'static Library>>>;
    static LOADED: OnceLock<Mutex<HashMap<u64, Slot>>> = OnceLock::new();

    let (compiler, version) = compiler()
        .map_err(|error| CudaError::Library { library: "a C++ compiler", advice: error.advice() })?;
    let text = text(common, module, defines);
    let mut hasher = DefaultHasher::new();
    (&text, OPTIONS, compiler, version).hash(&mut hasher);
    let hash = hasher.finish();
    let slot = {
        let mut loaded = lock(LOADED.get_or_init(Mutex::default));
        Arc::clone(loaded.entry(hash).or_default())
    };
    // Threads that want the same library wait for the first of them here.
    let mut slot = lock(&slot);
    if let Some(library) = *slot {
        return Ok(library);
    }
    let path = directory()?.join(format!("{}-{hash:016x}.so", module.name));
    if !path.exists() {
        build(module, compiler, version, &text, &path)?;
    }
    let library = load(&path)?;
    *slot = Some(library);
    Ok(library)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Beside the executable of the tests, so that cleaning up removes it too.
fn directory() -> Result<PathBuf, CudaError> {
    let made = std::env::current_exe().and_then(|exe| {
        let directory = exe.with_file_name("cuda-emulator");
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    });
    made.map_err(|error| failed("making a folder for compiled kernels", &error))
}

fn failed(call: &'static str, reason: &dyn std::fmt::Display) -> CudaError {
    CudaError::Call { call, reason: reason.to_string() }
}

fn build(module: &Module, compiler: &str, version: &str, text: &str, path: &Path) -> Result<(), CudaError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let work =
        tempfile::tempdir_in(directory).map_err(|error| failed("making a temporary folder", &error))?;
    let (source, output) = (work.path().join(format!("{}.cpp", module.name)), work.path().join("library.so"));
    std::fs::write(&source, text).map_err(|error| failed("writing the text of the kernels", &error))?;
    let frames = if version.contains("clang") {
        "-Werror=frame-larger-than"
    } else {
        "-Werror=frame-larger-than=32768"
    };
    let ran = Command::new(compiler)
        .args(OPTIONS)
        .arg(frames)
        .arg("-o")
        .arg(&output)
        .arg(&source)
        .output()
        .map_err(|error| failed("starting the C++ compiler", &error))?;
    if !ran.status.success() {
        return Err(CudaError::Compile {
            module: module.name,
            architecture: format!("this CPU with {compiler}"),
            log: String::from_utf8_lossy(&ran.stderr).into_owned(),
        });
    }
    // Another process may do the same: whichever comes last leaves the same library.
    std::fs::rename(&output, path).map_err(|error| failed("keeping compiled kernels", &error))
}

fn load(path: &Path) -> Result<&'static Library, CudaError> {
    // SAFETY: the library is what `build` made; it has no initialisers that do anything.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| failed("loading compiled kernels", &error))?;
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    let rows = {
        // SAFETY: the type is that of the function in the text.
        let table = unsafe { library.get::<unsafe extern "C" fn() -> *const Row>(b"emulated_kernels") }
            .map_err(|error| failed("reading the table of kernels", &error))?;
        // SAFETY: the table ends with a row without a name.
        unsafe {
            let first = table();
            let mut len = 0;
            while !(*first.add(len)).name.is_null() {
                len += 1;
            }
            std::slice::from_raw_parts(first, len)
        }
    };
    Ok(Box::leak(Box::new(Library { rows, running: Mutex::new(()) })))
}

/// What the compiler gets.
fn text(common: &str, module: &Module, defines: &[(&'static str, i64)]) -> String {
    let (kernels, names) = kernels(module.text);
    let mut text = String::new();
    // `cuda.hpp` needs the type of elements; other macros might meet names in headers.
    let (element, others): (Vec<_>, Vec<_>) = defines.iter().partition(|(name, _)| *name == "ELEMENT");
    let define = |text: &mut String, defines: &[&(&str, i64)]| {
        for (name, value) in defines {
            let _ = writeln!(text, "#define {name} {value}");
        }
    };
    define(&mut text, &element);
    let _ =
        writeln!(text, "#line 1 \"fibers.hpp\"\n{FIBERS}\n#line 1 \"cuda.hpp\"\n{CUDA}\n#define EMULATED 1");
    define(&mut text, &others);
    text += "namespace device {\n";
    // A kernel hides what stands for it outside; one that the preprocessor leaves out does not.
    for name in &names {
        let _ = writeln!(text, "static emulated::Absent {name};");
    }
    let _ = writeln!(
        text,
        "namespace {{\n#line 1 \"common.cuh\"\n{common}\n#line 1 \"{}.cu\"\n{kernels}",
        module.name
    );
    text += "#line 1 \"table of kernels\"\nconstexpr emulated::Kernel table[] = {\n";
    for name in &names {
        let _ = writeln!(text, "emulated::Describe<&{name}>::kernel(\"{name}\"),");
    }
    text += "{nullptr, nullptr, nullptr, nullptr}};\n}\n}\n";
    text += "extern \"C\" __attribute__((visibility(\"default\"))) const emulated::Kernel *emulated_kernels() {\n";
    text += "return device::table;\n}\n";
    text
}

/// The text with kernels as plain functions, and their names.
fn kernels(text: &str) -> (String, Vec<&str>) {
    const MARK: &str = "extern \"C\" __global__";
    let (mut out, mut names) = (String::new(), Vec::new());
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        let (before, after) = (&rest[..at], &rest[at + MARK.len()..]);
        out += before;
        if before.is_empty() || before.ends_with('\n') {
            names.extend(name(after));
        }
        rest = after;
    }
    out += rest;
    (out, names)
}

/// The name in ` __launch_bounds__(…) void NAME(…)`, with bounds before or after `void`.
fn name(declaration: &str) -> Option<&str> {
    let mut rest = declaration.trim_start();
    loop {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        let word = &rest[..end];
        rest = rest[end..].trim_start();
        match word {
            "void" => {}
            "__launch_bounds__" => {
                let mut depth = 0;
                let end = rest.find(|c| {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    depth == 0
                })?;
                rest = rest[end + 1..].trim_start();
            }
            _ => return (!word.is_empty()).then_some(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_kernels_at_line_starts() {
        let text = "// extern \"C\" __global__ void no(int x)\nextern \"C\" __global__ void a(int x) {}\n\
                    extern \"C\" __global__ void __launch_bounds__(32 * (2), 1)\nb2(float *y) {}\n\
                    extern \"C\" __global__ __launch_bounds__(64) void c() {}";
        let (out, names) = kernels(text);
        assert_eq!(names, ["a", "b2", "c"]);
        assert!(out.contains("\n void a(int x) {}"), "{out}");
    }
}

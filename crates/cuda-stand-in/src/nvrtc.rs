//! NVRTC: texts are compiled by the emulator, and the code is the text.

use crate::state::{new_handle, state};
use cuda_emulator::compile_whole;
use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};
use reattention_cuda::driver::{CudaError, Module};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Of CUDA 13.0, with the architectures that it knows.
const VERSION: (i32, i32) = (13, 0);
const ARCHITECTURES: &[i32] = &[75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121];

/// What machine code and PTX start with.
const MACHINE_CODE: &[u8; 16] = b"\x7fstand-in code\n\0";
const PTX: &str = "// PTX of the stand-in";

/// A program between its creation and its end.
pub(crate) struct Program {
    text: String,
    log: String,
    compiled: Option<Code>,
}

/// What a program was compiled to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    /// `sm_90a`, `compute_90`.
    pub(crate) architecture: String,
    /// NVRTC's version, as drivers count.
    pub(crate) version: i32,
    defines: Vec<(String, i64)>,
    text: String,
}

/// Definitions of macros that live as long as the process.
pub(crate) type Defines = &'static [(&'static str, i64)];

impl Code {
    /// The text as the emulator takes it, kept for ever: there are few.
    pub(crate) fn module(&self) -> (&'static Module, Defines) {
        static KNOWN: LazyLock<Mutex<HashMap<String, (&'static Module, Defines)>>> =
            LazyLock::new(Mutex::default);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        *known.entry(self.write()).or_insert_with(|| {
            let module = Module { name: "whole", text: self.text.clone().leak() };
            let defines: Vec<(&'static str, i64)> =
                self.defines.iter().map(|(name, value)| (&*name.clone().leak(), *value)).collect();
            (Box::leak(Box::new(module)), defines.leak())
        })
    }

    fn write(&self) -> String {
        let mut out = format!("{}\n{}\n", self.architecture, self.version);
        for (name, value) in &self.defines {
            out += &format!("{name}={value}\n");
        }
        format!("{out}\n{}", self.text)
    }

    fn read(text: &str) -> Option<Self> {
        let (head, text) = text.split_once("\n\n")?;
        let mut lines = head.lines();
        let (architecture, version) = (lines.next()?.to_owned(), lines.next()?.parse().ok()?);
        let defines = lines.map(|line| {
            let (name, value) = line.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Some(Self { architecture, version, defines: defines.collect::<Option<_>>()?, text: text.to_owned() })
    }

    /// Its length stands before it: who loads machine code is told no length.
    fn machine_code(&self) -> Vec<u8> {
        let text = self.write();
        [&MACHINE_CODE[..], &(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn ptx(&self) -> Vec<u8> {
        format!("{PTX}\n{}\0", self.write()).into_bytes()
    }

    /// What was loaded, or `None` if it is neither machine code nor PTX.
    ///
    /// # Safety
    /// The image is whole machine code, or ends with a zero.
    pub(crate) unsafe fn load(image: *const u8) -> Option<Self> {
        // SAFETY: the caller's promise; each byte is looked at only if those before it are as expected.
        unsafe {
            if (0..MACHINE_CODE.len()).all(|i| *image.add(i) == MACHINE_CODE[i]) {
                let at = image.add(MACHINE_CODE.len());
                let len = u64::from_le_bytes(at.cast::<[u8; 8]>().read()) as usize;
                return Self::read(std::str::from_utf8(std::slice::from_raw_parts(at.add(8), len)).ok()?);
            }
            let text = CStr::from_ptr(image.cast()).to_str().ok()?;
            Self::read(text.strip_prefix(PTX)?.strip_prefix('\n')?)
        }
    }
}

/// NVRTC: the text is copied; here without headers.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCreateProgram(
    program: *mut nvrtcProgram,
    source: *const c_char,
    _name: *const c_char,
    headers: c_int,
    _texts: *const *const c_char,
    _names: *const *const c_char,
) -> nvrtcResult {
    if program.is_null() || source.is_null() || headers != 0 {
        return nvrtcResult::NVRTC_ERROR_INVALID_INPUT;
    }
    // SAFETY: the caller gives a string that ends with a zero.
    let text = unsafe { CStr::from_ptr(source) }.to_string_lossy().into_owned();
    let handle = new_handle();
    state().programs.insert(handle, Program { text, log: String::new(), compiled: None });
    // SAFETY: the caller's promise.
    unsafe { program.write(handle as nvrtcProgram) };
    nvrtcResult::NVRTC_SUCCESS
}

/// NVRTC: takes the program away and writes null.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcDestroyProgram(program: *mut nvrtcProgram) -> nvrtcResult {
    if program.is_null() {
        return nvrtcResult::NVRTC_ERROR_INVALID_PROGRAM;
    }
    // SAFETY: the caller's promise.
    let gone = state().programs.remove(&(unsafe { program.read() } as usize));
    // SAFETY: as above.
    unsafe { program.write(std::ptr::null_mut()) };
    gone.map_or(nvrtcResult::NVRTC_ERROR_INVALID_PROGRAM, |_| nvrtcResult::NVRTC_SUCCESS)
}

/// Options that were understood.
fn options(given: &[String]) -> Result<(String, Vec<(String, i64)>), String> {
    let (mut architecture, mut defines) = ("compute_75".to_owned(), Vec::new());
    for option in given {
        let wrong = || format!("nvrtc: error: unrecognized option {option} found");
        if let Some(name) = option.strip_prefix("--gpu-architecture=") {
            let number = name.strip_prefix("sm_").or_else(|| name.strip_prefix("compute_"));
            let known = number.map(|n| n.trim_end_matches('a')).and_then(|n| n.parse().ok());
            if !known.is_some_and(|n: i32| ARCHITECTURES.contains(&n) && (n >= 90 || !name.ends_with('a'))) {
                return Err("nvrtc: error: invalid value for --gpu-architecture (-arch)".into());
            }
            name.clone_into(&mut architecture);
        } else if let Some(define) = option.strip_prefix("-D") {
            let (name, value) = define.split_once('=').ok_or_else(wrong)?;
            defines.push((name.to_owned(), value.parse().map_err(|_| wrong())?));
        } else if !["--std=c++17", "-default-device"].contains(&option.as_str()) {
            return Err(wrong());
        }
    }
    Ok((architecture, defines))
}

/// NVRTC, for the options that are given.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCompileProgram(
    program: nvrtcProgram,
    n: c_int,
    given: *const *const c_char,
) -> nvrtcResult {
    let mut state = state();
    let compiles = state.settings.compiler;
    let Some(program) = state.programs.get_mut(&(program as usize)) else {
        return nvrtcResult::NVRTC_ERROR_INVALID_PROGRAM;
    };
    let n = usize::try_from(n).unwrap_or(0);
    let given: Vec<String> = (0..n)
        // SAFETY: the caller gives as many strings.
        .map(|i| unsafe { CStr::from_ptr(*given.add(i)) }.to_string_lossy().into_owned())
        .collect();
    if !compiles {
        return nvrtcResult::NVRTC_ERROR_INTERNAL_ERROR;
    }
    let (architecture, defines) = match options(&given) {
        Ok(options) => options,
        Err(log) => {
            program.log = log;
            return nvrtcResult::NVRTC_ERROR_INVALID_OPTION;
        }
    };
    let version = VERSION.0 * 1000 + VERSION.1 * 10;
    let code = Code { architecture, version, defines, text: program.text.clone() };
    let (module, defines) = code.module();
    match compile_whole(module, defines) {
        Ok(()) => {
            program.compiled = Some(code);
            nvrtcResult::NVRTC_SUCCESS
        }
        Err(error) => {
            program.log = match error {
                CudaError::Compile { log, .. } => log,
                error => error.to_string(),
            };
            nvrtcResult::NVRTC_ERROR_COMPILATION
        }
    }
}

/// The size of an output, or the output itself, of a program that has one.
///
/// # Safety
/// `size` and `to` are null or have room for what is written.
unsafe fn output(
    program: nvrtcProgram,
    size: Option<*mut usize>,
    to: *mut c_char,
    of: impl FnOnce(&Program) -> Option<Vec<u8>>,
) -> nvrtcResult {
    let state = state();
    let Some(output) = state.programs.get(&(program as usize)).and_then(of) else {
        return nvrtcResult::NVRTC_ERROR_INVALID_PROGRAM;
    };
    match size {
        Some(size) if size.is_null() => return nvrtcResult::NVRTC_ERROR_INVALID_INPUT,
        // SAFETY: promised by the caller.
        Some(size) => unsafe { size.write(output.len()) },
        None if to.is_null() => return nvrtcResult::NVRTC_ERROR_INVALID_INPUT,
        // SAFETY: promised by the caller.
        None => unsafe { to.copy_from_nonoverlapping(output.as_ptr().cast(), output.len()) },
    }
    nvrtcResult::NVRTC_SUCCESS
}

fn log(program: &Program) -> Option<Vec<u8>> {
    Some(format!("{}\0", program.log).into_bytes())
}

/// For a virtual architecture there is none, and its size is 0.
fn machine_code(program: &Program) -> Option<Vec<u8>> {
    let code = program.compiled.as_ref()?;
    Some(if code.architecture.starts_with("sm_") { code.machine_code() } else { Vec::new() })
}

fn ptx(program: &Program) -> Option<Vec<u8>> {
    program.compiled.as_ref().map(Code::ptx)
}

/// NVRTC: a zero at the end counts.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLogSize(program: nvrtcProgram, size: *mut usize) -> nvrtcResult {
    // SAFETY: the caller's promise.
    unsafe { output(program, Some(size), std::ptr::null_mut(), log) }
}

/// NVRTC.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLog(program: nvrtcProgram, to: *mut c_char) -> nvrtcResult {
    // SAFETY: the caller's promise.
    unsafe { output(program, None, to, log) }
}

/// NVRTC.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetCUBINSize(program: nvrtcProgram, size: *mut usize) -> nvrtcResult {
    // SAFETY: the caller's promise.
    unsafe { output(program, Some(size), std::ptr::null_mut(), machine_code) }
}

/// NVRTC.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetCUBIN(program: nvrtcProgram, to: *mut c_char) -> nvrtcResult {
    // SAFETY: the caller's promise.
    unsafe { output(program, None, to, machine_code) }
}

/// NVRTC: a zero at the end counts.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetPTXSize(program: nvrtcProgram, size: *mut usize) -> nvrtcResult {
    // SAFETY: the caller's promise.
    unsafe { output(program, Some(size), std::ptr::null_mut(), ptx) }
}

/// NVRTC.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetPTX(program: nvrtcProgram, to: *mut c_char) -> nvrtcResult {
    // SAFETY: the caller's promise.
    unsafe { output(program, None, to, ptx) }
}

/// NVRTC.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> nvrtcResult {
    if major.is_null() || minor.is_null() {
        return nvrtcResult::NVRTC_ERROR_INVALID_INPUT;
    }
    // SAFETY: the caller's promise.
    unsafe {
        major.write(VERSION.0);
        minor.write(VERSION.1);
    }
    nvrtcResult::NVRTC_SUCCESS
}

/// NVRTC.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetNumSupportedArchs(n: *mut c_int) -> nvrtcResult {
    if n.is_null() {
        return nvrtcResult::NVRTC_ERROR_INVALID_INPUT;
    }
    // SAFETY: the caller's promise.
    unsafe { n.write(ARCHITECTURES.len() as c_int) };
    nvrtcResult::NVRTC_SUCCESS
}

/// NVRTC: in ascending order.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetSupportedArchs(to: *mut c_int) -> nvrtcResult {
    if to.is_null() {
        return nvrtcResult::NVRTC_ERROR_INVALID_INPUT;
    }
    // SAFETY: the caller has room for as many as were told.
    unsafe { to.copy_from_nonoverlapping(ARCHITECTURES.as_ptr(), ARCHITECTURES.len()) };
    nvrtcResult::NVRTC_SUCCESS
}

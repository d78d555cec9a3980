//! Compiles kernels for the device that is found, and keeps them on disk.
//!
//! NVRTC is taken under the first of these names that the system finds: `libnvrtc.so`, `libnvrtc.so.13`, `.12`, `.11`
//! (`nvrtc64_130_0.dll` on Windows). Kernels include no header, so that nothing else of the toolkit is needed.

use super::libraries;
use crate::driver::{COMMON, CudaError, Module};
use cudarc::nvrtc::sys as nvrtc;
use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use xxhash_rust::xxh3::xxh3_128;

/// Compiles the kernels of `module`, each of `defines` a macro, for `architecture`: `sm_90a` gives machine code for devices of
/// compute capability 9.0, `compute_90` PTX that the driver of any later device compiles on.
///
/// # Errors
/// When NVRTC is not there or the text does not compile without a warning.
pub fn compile(
    module: &Module,
    defines: &[(&'static str, i64)],
    architecture: &str,
) -> Result<Vec<u8>, CudaError> {
    libraries::nvrtc()?;
    let refuse =
        |log: String| CudaError::Compile { module: module.name, architecture: architecture.to_owned(), log };
    let c_string =
        |text: String| CString::new(text).map_err(|_| refuse("a zero byte in the text or an option".into()));
    let source = c_string(source(module))?;
    let options = options(defines, architecture).into_iter().map(c_string).collect::<Result<Vec<_>, _>>()?;
    let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();

    let program = Program::new(&source)?;
    // SAFETY: the options live through the call.
    let status = unsafe { nvrtc::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    let log = program.output(&Output::Log)?;
    let log = String::from_utf8_lossy(&log).trim_matches(['\0', '\n', ' ']).to_owned();
    match status {
        // A warning may be a mistake, and there is nobody to read it when a device is first used.
        nvrtc::nvrtcResult::NVRTC_SUCCESS if log.is_empty() => {}
        nvrtc::nvrtcResult::NVRTC_SUCCESS => return Err(refuse(log)),
        status if log.is_empty() => return Err(refuse(format!("{status:?}"))),
        _ => return Err(refuse(log)),
    }
    program.output(if architecture.starts_with("sm_") { &Output::MachineCode } else { &Output::Ptx })
}

/// Whether NVRTC is there.
///
/// # Errors
/// When it is not, or is too old: with what to install.
pub fn check_compiler() -> Result<(), CudaError> {
    libraries::nvrtc()
}

/// Compiles for one device.
#[derive(Debug)]
pub(super) struct Compiler {
    architecture: String,
    /// NVRTC's.
    version: (i32, i32),
    cache: Option<Cache>,
}

impl Compiler {
    /// For a device of this compute capability.
    pub(super) fn new(capability: (u32, u32)) -> Result<Self, CudaError> {
        libraries::nvrtc()?;
        let (mut major, mut minor, mut n) = (0, 0, 0);
        // SAFETY: results are written to variables.
        unsafe {
            check("nvrtcVersion", nvrtc::nvrtcVersion(&mut major, &mut minor))?;
            check("nvrtcGetNumSupportedArchs", nvrtc::nvrtcGetNumSupportedArchs(&mut n))?;
        }
        let mut known = vec![0; n.max(0) as usize];
        // SAFETY: the list has the length that was told.
        unsafe { check("nvrtcGetSupportedArchs", nvrtc::nvrtcGetSupportedArchs(known.as_mut_ptr()))? };
        let known: Vec<u32> = known.into_iter().filter_map(|a| u32::try_from(a).ok()).collect();
        let architecture = architecture(capability, &known).ok_or_else(|| CudaError::Unsupported {
            what: format!(
                "compute capability {}.{} with NVRTC {major}.{minor}, which compiles for {known:?} (an older NVRTC would do)",
                capability.0, capability.1
            ),
        })?;
        let cache = Cache::of_user();
        if cache.is_none() {
            tracing::warn!(
                "kernels are compiled anew each time: set REATTENTION_CACHE to a folder to keep them in"
            );
        }
        Ok(Self { architecture, version: (major, minor), cache })
    }

    /// The version of NVRTC.
    pub(super) fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Code for the device, from the disk if it was compiled before.
    pub(super) fn code(
        &self,
        module: &Module,
        defines: &[(&'static str, i64)],
    ) -> Result<Vec<u8>, CudaError> {
        let Some(cache) = &self.cache else { return compile(module, defines, &self.architecture) };
        let options = options(defines, &self.architecture).join("\n");
        let key = format!("{}\n{options}\nNVRTC {:?}", source(module), self.version);
        let path = cache.path(module.name, key.as_bytes());
        if let Some(code) = cache.read(&path) {
            return Ok(code);
        }
        let code = compile(module, defines, &self.architecture)?;
        if let Err(error) = cache.write(&path, &code) {
            tracing::warn!("compiled kernels cannot be kept in {}: {error}", cache.folder.display());
        }
        Ok(code)
    }
}

/// What the compiler reads; messages name the files that the lines come from.
fn source(module: &Module) -> String {
    format!("#line 1 \"common.cuh\"\n{COMMON}\n#line 1 \"{}.cu\"\n{}", module.name, module.text)
}

fn options(defines: &[(&'static str, i64)], architecture: &str) -> Vec<String> {
    let mut options =
        vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into(), "-default-device".into()];
    options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

/// What to compile for: the device itself where NVRTC knows it, with the instructions that it alone has; else PTX for the
/// newest architecture that came before it.
fn architecture(capability: (u32, u32), known: &[u32]) -> Option<String> {
    let exact = 10 * capability.0 + capability.1;
    if known.contains(&exact) {
        // From 9.0 on, each has a variant of its own.
        return Some(format!("sm_{exact}{}", if exact >= 90 { "a" } else { "" }));
    }
    known.iter().filter(|&&a| a < exact).max().map(|a| format!("compute_{a}"))
}

struct Program(nvrtc::nvrtcProgram);

impl Program {
    /// NVRTC has been checked.
    fn new(source: &CString) -> Result<Self, CudaError> {
        let mut program = null_mut();
        // SAFETY: the text is copied; there are no headers.
        let status = unsafe {
            nvrtc::nvrtcCreateProgram(
                &mut program,
                source.as_ptr(),
                c"kernels.cu".as_ptr(),
                0,
                null(),
                null(),
            )
        };
        check("nvrtcCreateProgram", status).map(|()| Self(program))
    }

    fn output(&self, output: &Output) -> Result<Vec<u8>, CudaError> {
        type Size = unsafe fn(nvrtc::nvrtcProgram, *mut usize) -> nvrtc::nvrtcResult;
        type Get = unsafe fn(nvrtc::nvrtcProgram, *mut c_char) -> nvrtc::nvrtcResult;
        let (size, get): (Size, Get) = match output {
            Output::Log => (nvrtc::nvrtcGetProgramLogSize, nvrtc::nvrtcGetProgramLog),
            Output::MachineCode => (nvrtc::nvrtcGetCUBINSize, nvrtc::nvrtcGetCUBIN),
            Output::Ptx => (nvrtc::nvrtcGetPTXSize, nvrtc::nvrtcGetPTX),
        };
        let mut len = 0;
        // SAFETY: the program lives; the first function says how many bytes the second writes.
        unsafe {
            check("asking NVRTC for the size of its output", size(self.0, &mut len))?;
            let mut bytes = vec![0u8; len];
            check("asking NVRTC for its output", get(self.0, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }
}

/// What a program can be asked for.
enum Output {
    /// Messages.
    Log,
    /// Code for one architecture.
    MachineCode,
    /// Code that the driver compiles on; a zero stands at its end.
    Ptx,
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nothing else holds it.
        unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn check(call: &'static str, status: nvrtc::nvrtcResult) -> Result<(), CudaError> {
    match status {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        status => Err(CudaError::Call { call, reason: format!("{status:?}") }),
    }
}

/// Compiled kernels on disk, one file each: [`MAGIC`], the xxh3-128 of the code, the code.
#[derive(Debug)]
struct Cache {
    folder: PathBuf,
}

const MAGIC: &[u8; 8] = b"RATTNK1\n";

impl Cache {
    /// `$REATTENTION_CACHE`, or `reattention/kernels` in the user's folder for caches.
    fn of_user() -> Option<Self> {
        let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = folder("REATTENTION_CACHE").or_else(|| {
            let caches = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
            Some(caches.or_else(|| folder("LOCALAPPDATA"))?.join("reattention").join("kernels"))
        })?;
        Some(Self { folder })
    }

    /// Of what is compiled from `key`.
    fn path(&self, module: &str, key: &[u8]) -> PathBuf {
        self.folder.join(format!("{module}-{:032x}.bin", xxh3_128(key)))
    }

    /// `None` if it is not there, or not whole.
    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let mut file = std::fs::read(path).ok()?;
        let sum = file.strip_prefix(MAGIC)?.first_chunk::<16>()?;
        let start = MAGIC.len() + sum.len();
        if xxh3_128(&file[start..]).to_le_bytes() != *sum || file.len() == start {
            tracing::warn!("{} is damaged: the kernels are compiled anew", path.display());
            return None;
        }
        Some(file.split_off(start))
    }

    /// Under another name first, so that nobody reads half a file.
    fn write(&self, path: &Path, code: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let file = tempfile::NamedTempFile::new_in(&self.folder)?;
        std::fs::write(file.path(), [MAGIC, &xxh3_128(code).to_le_bytes()[..], code].concat())?;
        file.persist(path).map(drop).map_err(|e| e.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_architecture_is_the_devices_own_or_one_before_it() {
        let known = [75, 80, 86, 87, 89, 90, 100, 103, 120];
        let of = |major, minor| architecture((major, minor), &known);
        assert_eq!(of(8, 0).as_deref(), Some("sm_80"));
        assert_eq!(of(8, 9).as_deref(), Some("sm_89"));
        assert_eq!(of(9, 0).as_deref(), Some("sm_90a"));
        assert_eq!(of(10, 0).as_deref(), Some("sm_100a"));
        assert_eq!(of(10, 3).as_deref(), Some("sm_103a"));
        assert_eq!(of(12, 1).as_deref(), Some("compute_120"));
        assert_eq!(of(13, 0).as_deref(), Some("compute_120"));
        assert_eq!(architecture((8, 0), &[90, 100]), None);
    }

    #[test]
    fn the_cache_gives_back_what_was_kept_and_nothing_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { folder: folder.path().join("deep").join("er") };
        let (path, other) = (cache.path("top_k", b"text 1"), cache.path("top_k", b"text 2"));
        assert_ne!(path, other);
        assert_eq!(cache.read(&path), None);
        cache.write(&path, b"code").unwrap();
        cache.write(&path, b"newer code").unwrap();
        assert_eq!(cache.read(&path).as_deref(), Some(&b"newer code"[..]));
        assert_eq!(std::fs::read_dir(&cache.folder).unwrap().count(), 1, "no temporary file is left");

        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(cache.read(&path), None, "{len} bytes of {}", whole.len());
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(cache.read(&path), None, "byte {at}");
        }
    }
}

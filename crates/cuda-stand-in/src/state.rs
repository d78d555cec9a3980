//! What the libraries remember between calls: whether the driver is started, the context, and whose it is.

use crate::cublaslt::Descriptors;
use crate::launch::Loaded;
use crate::memory::Memory;
use crate::nvrtc::Program;
use crate::streams::Streams;
use crate::variables;
use cuda_emulator::Emulator;
use cudarc::driver::sys::CUresult;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// An answer of the driver.
pub(crate) type Answer<T = ()> = Result<T, CUresult>;

/// What the environment says of the device.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) devices: i32,
    pub(crate) capability: (u32, u32),
    pub(crate) driver: i32,
    pub(crate) memory: usize,
    pub(crate) pinned: usize,
    pub(crate) pools: bool,
    pub(crate) compiler: bool,
    /// Launches until one fails; 0 where none will.
    pub(crate) fails: u64,
}

impl Settings {
    fn of_environment() -> Self {
        fn number<T: FromStr>(name: &str, default: T) -> T {
            match std::env::var(name) {
                Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no such number")),
                Err(_) => default,
            }
        }
        let capability = std::env::var(variables::CAPABILITY).unwrap_or_else(|_| "9.0".into());
        let (major, minor) = capability.split_once('.').unwrap_or((&capability, "0"));
        let part = |text: &str| text.parse().unwrap_or_else(|_| panic!("{capability} is no capability"));
        Self {
            devices: number(variables::DEVICES, 1),
            capability: (part(major), part(minor)),
            driver: number(variables::DRIVER, 13_000),
            memory: number(variables::MEMORY, 8 << 30),
            pinned: number(variables::PINNED, 8 << 30),
            pools: number(variables::POOLS, 1) != 0,
            compiler: number(variables::COMPILER, 1) != 0,
            fails: number(variables::FAILS, 0),
        }
    }
}

/// All of it.
pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) started: bool,
    pub(crate) context: Option<Context>,
    pub(crate) programs: BTreeMap<usize, Program>,
    pub(crate) descriptors: Descriptors,
}

/// The primary context of the one device, while somebody holds it.
pub(crate) struct Context {
    pub(crate) handle: usize,
    pub(crate) held: usize,
    pub(crate) settings: Settings,
    /// What went wrong on the device: all that follows fails in the same way.
    pub(crate) failed: Option<CUresult>,
    pub(crate) streams: Streams,
    pub(crate) memory: Memory,
    pub(crate) loaded: Loaded,
    pub(crate) emulator: Emulator,
}

thread_local! {
    /// The context that is current on this thread, or 0.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

pub(crate) fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
        Mutex::new(State {
            settings: Settings::of_environment(),
            started: false,
            context: None,
            programs: BTreeMap::new(),
            descriptors: Descriptors::default(),
        })
    });
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle that none was before.
pub(crate) fn new_handle() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x5000);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

pub(crate) fn make_current(handle: usize) {
    CURRENT.set(handle);
}

fn code(answer: Answer) -> CUresult {
    match answer {
        Ok(()) => CUresult::CUDA_SUCCESS,
        Err(code) => code,
    }
}

/// A call of the driver, which must have been started.
pub(crate) fn call(work: impl FnOnce(&mut State) -> Answer) -> CUresult {
    let mut state = state();
    code(if state.started { work(&mut state) } else { Err(CUresult::CUDA_ERROR_NOT_INITIALIZED) })
}

/// A call that needs a context on the calling thread.
pub(crate) fn call_in_context(work: impl FnOnce(&mut Context) -> Answer) -> CUresult {
    call(|state| work(current(state)?))
}

/// The context of the calling thread, unless it has failed.
pub(crate) fn current(state: &mut State) -> Answer<&mut Context> {
    let current = CURRENT.get();
    let context = state.context.as_mut().filter(|c| c.handle == current);
    let context = context.ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
    match context.failed {
        Some(code) => Err(code),
        None => Ok(context),
    }
}

/// Writes a result where the caller wants it.
///
/// # Safety
/// `to` is null or points to room for a `T`.
pub(crate) unsafe fn give<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: promised by the caller.
    unsafe { to.write(value) };
    Ok(())
}

//! The instruction sets the kernels are compiled for, and the choice among them.

use super::CpuError;
use super::simd::{Kernel, Portable, Simd};

/// A set of instructions the kernels have a compiled path for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// x86-64 with AVX-512 F/BW/DQ/VL and BF16.
    Avx512Bf16,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// aarch64 with NEON.
    Neon,
    /// Any machine: plain Rust that the compiler vectorises as far as the target's baseline allows.
    Portable,
}

/// Every path, fastest first.
const ALL: [Path; 4] = [Path::Avx512Bf16, Path::Avx2, Path::Neon, Path::Portable];

impl Path {
    /// The fastest path this machine can run.
    pub fn best() -> Self {
        ALL.into_iter().find(|p| p.is_available()).unwrap_or(Self::Portable)
    }

    /// The paths this machine can run, fastest first.
    pub fn available() -> Vec<Self> {
        ALL.into_iter().filter(|p| p.is_available()).collect()
    }

    /// Whether this machine can run the path.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => super::simd::avx512_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => super::simd::avx2_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Portable => true,
            #[allow(unreachable_patterns, reason = "which arms remain depends on the architecture")]
            _ => false,
        }
    }

    /// The name in reports and in `REATTENTION_CPU_PATH`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// Runs a kernel compiled for this path.
    ///
    /// # Safety
    /// The path must be available, and whatever `kernel` asks of its caller must hold.
    pub(crate) unsafe fn call<K: Kernel>(self, kernel: K) {
        // SAFETY: the caller vouches for the instructions and for the kernel's own contract.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Bf16 => super::simd::Avx512::call(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => super::simd::Avx2::call(kernel),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => super::simd::Neon::call(kernel),
                _ => Portable::call(kernel),
            }
        }
    }

    /// f32 in a vector.
    pub(crate) fn lanes(self) -> usize {
        self.lanes_and_columns().0
    }

    /// Columns of a register tile.
    pub(crate) fn tile_width(self) -> usize {
        let (lanes, columns) = self.lanes_and_columns();
        lanes * columns
    }

    fn lanes_and_columns(self) -> (usize, usize) {
        fn of<S: Simd>() -> (usize, usize) {
            (S::LANES, S::COLS)
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => of::<super::simd::Avx512>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => of::<super::simd::Avx2>(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => of::<super::simd::Neon>(),
            _ => of::<Portable>(),
        }
    }

    /// Whether bf16 products are taken by an instruction of their own, in pairs.
    pub(crate) fn has_pair_dot(self) -> bool {
        self == Self::Avx512Bf16
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Path {
    type Err = CpuError;

    fn from_str(name: &str) -> Result<Self, CpuError> {
        ALL.into_iter()
            .find(|p| p.name() == name)
            .ok_or_else(|| CpuError::UnknownPath { name: name.to_owned() })
    }
}

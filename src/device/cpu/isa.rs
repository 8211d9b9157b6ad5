//! The vector instruction set, chosen when the device is created.
//!
//! Elementwise operations are plain loops, which [`by_isa`] compiles once per instruction set. Only the
//! matrix product has kernels with intrinsics, in `linear/`.

/// A vector instruction set. The order is from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// AVX-512 with VBMI (byte permutes) and BF16 (dot products of BF16 pairs).
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// Plain loops, compiled for the build's target.
    Portable,
}

impl Isa {
    /// The instruction sets that this machine can run, best first; never empty. Detection includes whether
    /// the operating system enabled the registers: some virtual machines do not, although the CPU reports
    /// the instructions.
    pub fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512dq")
                && std::is_x86_feature_detected!("avx512vl")
                && std::is_x86_feature_detected!("avx512vbmi")
                && std::is_x86_feature_detected!("avx512bf16")
                && std::is_x86_feature_detected!("fma")
            {
                found.push(Isa::Avx512);
            }
            if std::is_x86_feature_detected!("avx2")
                && std::is_x86_feature_detected!("fma")
                && std::is_x86_feature_detected!("f16c")
            {
                found.push(Isa::Avx2);
            }
        }
        found.push(Isa::Portable);
        found
    }
}

/// An [`Isa`] that was detected on this machine. Kernels take this type, so that none runs undetected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DetectedIsa(Isa);

impl DetectedIsa {
    /// Returns `None` if this machine does not support `isa`.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        Isa::available().contains(&isa).then_some(Self(isa))
    }

    pub(super) fn isa(self) -> Isa {
        self.0
    }
}

/// Calls `$f::<FMA>(args)`, compiled for the detected instruction set. `FMA` is whether a fused multiply-add
/// is one instruction; without it, `f32::mul_add` would call the C library.
macro_rules! by_isa {
    ($checked:expr, $f:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
            fn wide($($arg: $ty),*) $(-> $ret)? { $f::<true>($($arg),*) }
            #[target_feature(enable = "avx2,fma,f16c")]
            fn narrow($($arg: $ty),*) $(-> $ret)? { $f::<true>($($arg),*) }
            match $checked.isa() {
                // SAFETY: a `DetectedIsa` is only created for an instruction set of this machine.
                $crate::device::cpu::Isa::Avx512 => unsafe { wide($($arg),*) },
                // SAFETY: as above.
                $crate::device::cpu::Isa::Avx2 => unsafe { narrow($($arg),*) },
                $crate::device::cpu::Isa::Portable => $f::<false>($($arg),*),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        { let _ = $checked; $f::<false>($($arg),*) }
    }};
}
pub(super) use by_isa;

/// a × b + c, fused if `FMA`.
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

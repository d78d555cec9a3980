//! Plain Rust: four lanes, no fused multiply-add (without hardware for it that would be a library call a lane).

use super::{Kernel, Simd};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

type Lanes = [f32; 4];

#[inline(always)]
fn map(a: Lanes, b: Lanes, f: fn(f32, f32) -> f32) -> Lanes {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Portable {
    type V = Lanes;
    const LANES: usize = 4;
    const COLS: usize = 2;

    #[inline(never)]
    unsafe fn call<K: Kernel>(kernel: K) {
        kernel.run::<Self>()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Lanes {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Lanes {
        p.cast::<Lanes>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Lanes) {
        p.cast::<Lanes>().write_unaligned(v)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Lanes {
        let h = p.cast::<[u16; 4]>().read_unaligned();
        let mut v = [0.0; 4];
        for i in 0..4 {
            v[i] = f32::from_bits(u32::from(h[i]) << 16);
        }
        v
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Lanes {
        let h = p.cast::<[f16; 4]>().read_unaligned();
        [h[0].to_f32(), h[1].to_f32(), h[2].to_f32(), h[3].to_f32()]
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Lanes) {
        for i in 0..4 {
            *p.add(i) = bf16::from_f32(v[i]);
        }
    }

    #[inline(always)]
    unsafe fn add(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn mul_add(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        map(map(a, b, |x, y| x * y), c, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn max(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn gt(a: Lanes, b: Lanes) -> u32 {
        (0..4).fold(0, |mask, i| mask | u32::from(a[i] > b[i]) << i)
    }
    #[inline(always)]
    unsafe fn sum(v: Lanes) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    unsafe fn max_lane(v: Lanes) -> f32 {
        v[0].max(v[1]).max(v[2].max(v[3]))
    }
    #[inline(always)]
    unsafe fn round(v: Lanes) -> Lanes {
        // Adding and taking away 1.5 · 2²³ rounds to an integer with no library call; enough for |v| < 2²².
        const MAGIC: f32 = 12_582_912.0;
        [v[0] + MAGIC - MAGIC, v[1] + MAGIC - MAGIC, v[2] + MAGIC - MAGIC, v[3] + MAGIC - MAGIC]
    }
    #[inline(always)]
    unsafe fn scale_by_power(v: Lanes, n: Lanes) -> Lanes {
        map(v, n, |x, n| {
            // In two halves, since 2^128 alone is no f32.
            let half = (n * 0.5) as i32;
            let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
            if n < -126.0 { 0.0 } else { x * power(half) * power(n as i32 - half) }
        })
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Lanes, a: Lanes, b: Lanes) -> Lanes {
        let low = |v: Lanes| map(v, v, |x, _| f32::from_bits(x.to_bits() << 16));
        let high = |v: Lanes| map(v, v, |x, _| f32::from_bits(x.to_bits() & 0xffff_0000));
        Self::mul_add(high(a), high(b), Self::mul_add(low(a), low(b), acc))
    }
}

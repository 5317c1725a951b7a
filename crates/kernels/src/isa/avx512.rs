//! AVX-512 with VNNI: one instruction multiplies and adds 64 pairs of bytes.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _CMP_NLT_UQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128,
    _mm256_loadu_si256, _mm256_storeu_si256, _mm512_abs_ps, _mm512_add_ps, _mm512_and_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_cvtps_epi32, _mm512_cvtps_ph, _mm512_cvtsepi32_epi8, _mm512_div_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_mov_ps, _mm512_maskz_mov_ps,
    _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps,
    _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::{Isa, LANES};
use crate::cpu::Kernel;

/// The proof that the processor has AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, if it can be given.
    pub(crate) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        has_all.then_some(Self(()))
    }

    /// Runs a loop compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        fn inside<K: Kernel>(isa: Avx512, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        // SAFETY: `self` proves that the processor has the features that `inside` is compiled for.
        unsafe { inside(self, kernel) }
    }
}

impl Isa for Avx512 {
    type Floats = __m512;
    type Ints = __m512i;
    type Bytes = __m512i;
    type Nibbles = __m512i;

    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves that the processor has AVX-512 F; so in all methods below.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: AVX-512 F, as above; reads the 64 bytes of `from`, which need no alignment.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, values: __m512, to: &mut [f32; LANES]) {
        // SAFETY: AVX-512 F, as above; writes the 64 bytes of `to`, which need no alignment.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: AVX, as above; reads the 32 bytes of `from`, which need no alignment.
        let halves = unsafe { _mm256_loadu_si256(from.as_ptr().cast::<__m256i>()) };
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_cvtph_ps(halves) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: AVX, as above; reads the 32 bytes of `from`, which need no alignment.
        let halves = unsafe { _mm256_loadu_si256(from.as_ptr().cast::<__m256i>()) };
        // SAFETY: AVX-512 F, as above.
        let wide = unsafe { _mm512_cvtepu16_epi32(halves) };
        // SAFETY: AVX-512 F, as above.
        let shifted = unsafe { _mm512_slli_epi32::<16>(wide) };
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_castsi512_ps(shifted) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn zero_below(self, a: __m512, x: __m512, limit: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above. Not less, or not numbers: what stays.
        let stays = unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, limit) };
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_maskz_mov_ps(stays, a) }
    }

    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    fn sum_of_whole(self, a: __m512) -> f32 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    fn first(self, count: usize, a: __m512, b: __m512) -> __m512 {
        let mask = if count >= LANES { u16::MAX } else { (1 << count) - 1 };
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_mask_mov_ps(b, mask, a) }
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn scale(self, a: __m512, power: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_scalef_ps(a, power) }
    }

    #[inline(always)]
    fn store_f16(self, values: __m512, to: &mut [u8; 2 * LANES]) {
        // SAFETY: AVX-512 F, as above.
        let halves = unsafe { _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(values) };
        // SAFETY: AVX, as above; writes the 32 bytes of `to`, which need no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), halves) };
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_abs_ps(a) }
    }

    #[inline(always)]
    fn to_i8(self, a: __m512) -> [i8; LANES] {
        // SAFETY: AVX-512 F, as above. What is whole is the same by every way of rounding.
        let wide = unsafe { _mm512_cvtps_epi32(a) };
        // SAFETY: AVX-512 F, as above.
        let narrow = unsafe { _mm512_cvtsepi32_epi8(wide) };
        let mut bytes = [0; LANES];
        // SAFETY: SSE2; writes the 16 bytes of `bytes`, which need no alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), narrow) };
        bytes
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> __m512i {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_slli_epi32::<BITS>(a) }
    }

    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> __m512i {
        // SAFETY: AVX-512 F, as above; reads the 64 bytes of `from`, which need no alignment.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn low_nibbles(self, a: __m512i) -> __m512i {
        // SAFETY: AVX-512 F, as above.
        let mask = unsafe { _mm512_set1_epi8(0x0f) };
        // SAFETY: AVX-512 F, as above.
        unsafe { _mm512_and_si512(a, mask) }
    }

    #[inline(always)]
    fn high_nibbles(self, a: __m512i) -> __m512i {
        // SAFETY: AVX-512 BW, as above. There is no shift of bytes: what comes from the next is cut off.
        let shifted = unsafe { _mm512_srli_epi16::<4>(a) };
        self.low_nibbles(shifted)
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, a: __m512i, b: [i8; 4]) -> __m512i {
        let four = self.splat_four(b);
        // SAFETY: AVX-512 VNNI, as above.
        unsafe { _mm512_dpbusd_epi32(sums, a, four) }
    }

    #[inline(always)]
    fn begin_nibbles(self, sums: __m512i) -> __m512i {
        sums
    }

    #[inline(always)]
    fn dot_nibbles(self, dots: __m512i, a: __m512i, b: [i8; 4]) -> __m512i {
        self.dot(dots, a, b)
    }

    #[inline(always)]
    fn end_nibbles(self, dots: __m512i, _sums: __m512i) -> __m512i {
        dots
    }
}

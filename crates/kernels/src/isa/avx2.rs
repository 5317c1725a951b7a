//! AVX2 with FMA and F16C: two registers for each vector of sixteen lanes.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_NLT_UQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128,
    _mm_storeu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256,
    _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cmpgt_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_cvtps_ph, _mm256_div_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_round_ps, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_slli_epi16, _mm256_sllv_epi32,
    _mm256_srai_epi16, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps,
};

use super::{Isa, LANES, Plain};
use crate::cpu::Kernel;

const HALF: usize = LANES / 2;

/// An operation on both halves.
macro_rules! each {
    ($operation:path: $($vector:expr),+) => {
        [
            // SAFETY: the caller is a method of `Avx2`, which proves that the processor has AVX2, FMA and
            // F16C; the operations that this is used for touch registers only.
            unsafe { $operation($($vector[0]),+) },
            // SAFETY: the same.
            unsafe { $operation($($vector[1]),+) },
        ]
    };
}

/// The proof that the processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if it can be given.
    pub(crate) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }

    /// Runs a loop compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inside<K: Kernel>(isa: Avx2, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        // SAFETY: `self` proves that the processor has the features that `inside` is compiled for.
        unsafe { inside(self, kernel) }
    }
}

impl Isa for Avx2 {
    type Floats = [__m256; 2];
    type Ints = [__m256i; 2];
    type Bytes = [__m256i; 2];
    /// Sums of pairs in 16 bits: eight of two products of 15 and -128 fit.
    type Nibbles = [__m256i; 2];

    const REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 2] {
        // SAFETY: `self` proves that the processor has AVX; so in all methods below.
        [unsafe { _mm256_set1_ps(value) }; 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [__m256; 2] {
        let (halves, _) = from.as_chunks::<HALF>();
        // SAFETY: AVX, as above; reads the 32 bytes of a half, which need no alignment.
        let low = unsafe { _mm256_loadu_ps(halves[0].as_ptr()) };
        // SAFETY: the same.
        let high = unsafe { _mm256_loadu_ps(halves[1].as_ptr()) };
        [low, high]
    }

    #[inline(always)]
    fn store(self, values: [__m256; 2], to: &mut [f32; LANES]) {
        let (halves, _) = to.as_chunks_mut::<HALF>();
        // SAFETY: AVX, as above; writes the 32 bytes of a half, which need no alignment.
        unsafe { _mm256_storeu_ps(halves[0].as_mut_ptr(), values[0]) };
        // SAFETY: the same.
        unsafe { _mm256_storeu_ps(halves[1].as_mut_ptr(), values[1]) };
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> [__m256; 2] {
        let halves = load_halves(from);
        each!(_mm256_cvtph_ps: halves)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> [__m256; 2] {
        let halves = load_halves(from);
        let wide = each!(_mm256_cvtepu16_epi32: halves);
        let shifted = self.shift_left::<16>(wide);
        each!(_mm256_castsi256_ps: shifted)
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        each!(_mm256_add_ps: a, b)
    }

    #[inline(always)]
    fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        each!(_mm256_sub_ps: a, b)
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        each!(_mm256_mul_ps: a, b)
    }

    #[inline(always)]
    fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        each!(_mm256_div_ps: a, b)
    }

    #[inline(always)]
    fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        each!(_mm256_fmadd_ps: a, b, c)
    }

    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        each!(_mm256_max_ps: a, b)
    }

    #[inline(always)]
    fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        each!(_mm256_min_ps: a, b)
    }

    #[inline(always)]
    fn zero_below(self, a: [__m256; 2], x: [__m256; 2], limit: [__m256; 2]) -> [__m256; 2] {
        // Not less, or not numbers: what stays.
        let stays = each!(_mm256_cmp_ps::<_CMP_NLT_UQ>: x, limit);
        each!(_mm256_and_ps: stays, a)
    }

    #[inline(always)]
    fn largest(self, a: [__m256; 2]) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        Plain.largest(lanes)
    }

    #[inline(always)]
    fn sum_of_whole(self, a: [__m256; 2]) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        Plain.sum_of_whole(lanes)
    }

    #[inline(always)]
    fn first(self, count: usize, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: AVX, as above.
        let low = unsafe { _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7) };
        // SAFETY: AVX, as above.
        let high = unsafe { _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15) };
        let (lanes, counts) = ([low, high], self.splat_int(count.min(LANES) as i32));
        let before = each!(_mm256_cmpgt_epi32: counts, lanes);
        let mask = each!(_mm256_castsi256_ps: before);
        each!(_mm256_blendv_ps: b, a, mask)
    }

    #[inline(always)]
    fn round(self, a: [__m256; 2]) -> [__m256; 2] {
        each!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>: a)
    }

    #[inline(always)]
    fn scale(self, a: [__m256; 2], power: [__m256; 2]) -> [__m256; 2] {
        // The exponent's bits; the caller keeps the power within those of normal numbers.
        let (power, bias) = (each!(_mm256_cvtps_epi32: power), self.splat_int(127));
        let biased = each!(_mm256_add_epi32: power, bias);
        let bits = self.shift_left::<23>(biased);
        let two_to = each!(_mm256_castsi256_ps: bits);
        self.mul(a, two_to)
    }

    #[inline(always)]
    fn store_f16(self, values: [__m256; 2], to: &mut [u8; 2 * LANES]) {
        let halves: [__m128i; 2] = each!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>: values);
        let (parts, _) = to.as_chunks_mut::<LANES>();
        // SAFETY: SSE2; writes the 16 bytes of a part, which need no alignment.
        unsafe { _mm_storeu_si128(parts[0].as_mut_ptr().cast(), halves[0]) };
        // SAFETY: the same.
        unsafe { _mm_storeu_si128(parts[1].as_mut_ptr().cast(), halves[1]) };
    }

    #[inline(always)]
    fn abs(self, a: [__m256; 2]) -> [__m256; 2] {
        let bits = self.splat_int(i32::MAX);
        let but_sign = each!(_mm256_castsi256_ps: bits);
        each!(_mm256_and_ps: but_sign, a)
    }

    #[inline(always)]
    fn to_i8(self, a: [__m256; 2]) -> [i8; LANES] {
        // What is whole is the same by every way of rounding.
        let wide = each!(_mm256_cvtps_epi32: a);
        let mut lanes = [0_i32; LANES];
        let (halves, _) = lanes.as_chunks_mut::<HALF>();
        // SAFETY: AVX, as above; writes the 32 bytes of a half, which need no alignment.
        unsafe { _mm256_storeu_si256(halves[0].as_mut_ptr().cast(), wide[0]) };
        // SAFETY: the same.
        unsafe { _mm256_storeu_si256(halves[1].as_mut_ptr().cast(), wide[1]) };
        lanes.map(|lane| lane as i8)
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> [__m256i; 2] {
        // SAFETY: AVX, as above.
        [unsafe { _mm256_set1_epi32(value) }; 2]
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: [__m256i; 2]) -> [__m256i; 2] {
        let bits = self.splat_int(BITS as i32);
        each!(_mm256_sllv_epi32: a, bits)
    }

    #[inline(always)]
    fn to_floats(self, a: [__m256i; 2]) -> [__m256; 2] {
        each!(_mm256_cvtepi32_ps: a)
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> [__m256i; 2] {
        let (halves, _) = from.as_chunks::<32>();
        // SAFETY: AVX, as above; reads the 32 bytes of a half, which need no alignment.
        let low = unsafe { _mm256_loadu_si256(halves[0].as_ptr().cast()) };
        // SAFETY: the same.
        let high = unsafe { _mm256_loadu_si256(halves[1].as_ptr().cast()) };
        [low, high]
    }

    #[inline(always)]
    fn low_nibbles(self, a: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: AVX, as above.
        let mask = [unsafe { _mm256_set1_epi8(0x0f) }; 2];
        each!(_mm256_and_si256: a, mask)
    }

    #[inline(always)]
    fn high_nibbles(self, a: [__m256i; 2]) -> [__m256i; 2] {
        // There is no shift of bytes: what comes from the next is cut off.
        let shifted = each!(_mm256_srli_epi16::<4>: a);
        self.low_nibbles(shifted)
    }

    /// By pairs of 16 bits, even bytes and odd ones: the product of bytes would not fit there.
    #[inline(always)]
    fn dot(self, sums: [__m256i; 2], a: [__m256i; 2], b: [i8; 4]) -> [__m256i; 2] {
        let four = self.splat_four(b);
        let shifted = each!(_mm256_slli_epi16::<8>: four);
        let (even, odd) = (each!(_mm256_srai_epi16::<8>: shifted), each!(_mm256_srai_epi16::<8>: four));
        // SAFETY: AVX, as above.
        let low_bytes = [unsafe { _mm256_set1_epi16(0xff) }; 2];
        let (even_a, odd_a) = (each!(_mm256_and_si256: a, low_bytes), each!(_mm256_srli_epi16::<8>: a));
        let (even, odd) = (each!(_mm256_madd_epi16: even_a, even), each!(_mm256_madd_epi16: odd_a, odd));
        let sums = each!(_mm256_add_epi32: sums, even);
        each!(_mm256_add_epi32: sums, odd)
    }

    #[inline(always)]
    fn begin_nibbles(self, _sums: [__m256i; 2]) -> [__m256i; 2] {
        self.splat_int(0)
    }

    #[inline(always)]
    fn dot_nibbles(self, dots: [__m256i; 2], a: [__m256i; 2], b: [i8; 4]) -> [__m256i; 2] {
        let four = self.splat_four(b);
        let pairs = each!(_mm256_maddubs_epi16: a, four);
        each!(_mm256_add_epi16: dots, pairs)
    }

    #[inline(always)]
    fn end_nibbles(self, dots: [__m256i; 2], sums: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: AVX, as above.
        let ones = [unsafe { _mm256_set1_epi16(1) }; 2];
        let fours = each!(_mm256_madd_epi16: dots, ones);
        each!(_mm256_add_epi32: sums, fours)
    }
}

#[inline(always)]
fn load_halves(from: &[u8; 2 * LANES]) -> [__m128i; 2] {
    let (parts, _) = from.as_chunks::<LANES>();
    // SAFETY: SSE2, which they all have; reads the 16 bytes of a part, which need no alignment.
    let low = unsafe { _mm_loadu_si128(parts[0].as_ptr().cast()) };
    // SAFETY: the same.
    let high = unsafe { _mm_loadu_si128(parts[1].as_ptr().cast()) };
    [low, high]
}

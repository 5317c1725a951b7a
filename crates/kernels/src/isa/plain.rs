//! Plain Rust: runs everywhere, and is what the others are compared with.

use half::{bf16, f16};

use super::{Isa, LANES};

/// No instruction set in particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plain;

impl Isa for Plain {
    type Floats = [f32; LANES];
    type Ints = [i32; LANES];
    type Bytes = [u8; 64];
    type Nibbles = [i32; LANES];

    /// None in particular: as the widest has, so that the oracle goes its ways.
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Floats {
        *from
    }

    #[inline(always)]
    fn store(self, values: Self::Floats, to: &mut [f32; LANES]) {
        *to = values;
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Self::Floats {
        std::array::from_fn(|lane| f16::from_le_bytes([from[2 * lane], from[2 * lane + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::Floats {
        std::array::from_fn(|lane| bf16::from_le_bytes([from[2 * lane], from[2 * lane + 1]]).to_f32())
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] / b[lane])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn zero_below(self, a: Self::Floats, x: Self::Floats, limit: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| if x[lane] < limit[lane] { 0.0 } else { a[lane] })
    }

    #[inline(always)]
    fn largest(self, a: Self::Floats) -> f32 {
        a.iter().fold(f32::NEG_INFINITY, |largest, lane| if *lane > largest { *lane } else { largest })
    }

    #[inline(always)]
    fn sum_of_whole(self, a: Self::Floats) -> f32 {
        a.iter().sum()
    }

    #[inline(always)]
    fn first(self, count: usize, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| if lane < count { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn round(self, a: Self::Floats) -> Self::Floats {
        a.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn scale(self, a: Self::Floats, power: Self::Floats) -> Self::Floats {
        // The exponent's bits; the caller keeps the power within those of normal numbers.
        let two_to = |power: f32| f32::from_bits(((power as i32 + 127) as u32) << 23);
        std::array::from_fn(|lane| a[lane] * two_to(power[lane]))
    }

    #[inline(always)]
    fn store_f16(self, values: Self::Floats, to: &mut [u8; 2 * LANES]) {
        for (value, to) in values.iter().zip(to.as_chunks_mut::<2>().0) {
            *to = f16::from_f32(*value).to_le_bytes();
        }
    }

    #[inline(always)]
    fn abs(self, a: Self::Floats) -> Self::Floats {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn to_i8(self, a: Self::Floats) -> [i8; LANES] {
        // The conversion keeps to the range, as the caller does.
        a.map(|lane| lane as i8)
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::Ints {
        [value; LANES]
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: Self::Ints) -> Self::Ints {
        a.map(|lane| lane << BITS)
    }

    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Self::Floats {
        a.map(|lane| lane as f32)
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> Self::Bytes {
        *from
    }

    #[inline(always)]
    fn low_nibbles(self, a: Self::Bytes) -> Self::Bytes {
        a.map(|byte| byte & 0x0f)
    }

    #[inline(always)]
    fn high_nibbles(self, a: Self::Bytes) -> Self::Bytes {
        a.map(|byte| byte >> 4)
    }

    #[inline(always)]
    fn dot(self, sums: Self::Ints, a: Self::Bytes, b: [i8; 4]) -> Self::Ints {
        let mut sums = sums;
        for (lane, sum) in sums.iter_mut().enumerate() {
            for (byte, other) in b.iter().enumerate() {
                *sum = sum.wrapping_add(i32::from(a[4 * lane + byte]) * i32::from(*other));
            }
        }
        sums
    }

    #[inline(always)]
    fn begin_nibbles(self, sums: Self::Ints) -> Self::Ints {
        sums
    }

    #[inline(always)]
    fn dot_nibbles(self, dots: Self::Ints, a: Self::Bytes, b: [i8; 4]) -> Self::Ints {
        self.dot(dots, a, b)
    }

    #[inline(always)]
    fn end_nibbles(self, dots: Self::Ints, _sums: Self::Ints) -> Self::Ints {
        dots
    }
}

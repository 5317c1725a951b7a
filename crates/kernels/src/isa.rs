//! What a loop may ask of a processor: sixteen lanes of `f32`, sixteen of `i32`, and 64 bytes.
//!
//! Every operation is exact or correctly rounded, so all instruction sets agree in every bit.

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use absent::{Absent as Avx2, Absent as Avx512};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use plain::Plain;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// An instruction set. A value of an implementing type is the proof that the processor has it.
///
/// All methods are `#[inline(always)]`: see [`Kernel`](crate::cpu::Kernel).
pub(crate) trait Isa: Copy {
    /// Sixteen `f32`.
    type Floats: Copy;
    /// Sixteen `i32`.
    type Ints: Copy;
    /// 64 bytes.
    type Bytes: Copy;
    /// Some dot products of bytes of four bits, not yet added up.
    type Nibbles: Copy;

    /// How many of these fit into the processor's registers.
    const REGISTERS: usize;

    /// The same number in every lane.
    fn splat(self, value: f32) -> Self::Floats;
    /// Reads sixteen numbers.
    fn load(self, from: &[f32; LANES]) -> Self::Floats;
    /// Writes sixteen numbers.
    fn store(self, values: Self::Floats, to: &mut [f32; LANES]);
    /// Reads sixteen little-endian FP16 numbers.
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Self::Floats;
    /// Reads sixteen little-endian BF16 numbers.
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::Floats;
    /// `a + b`
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a - b`
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b`
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a / b`
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The larger one; `b` where either is not a number.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller one; `b` where either is not a number.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a`, and zero where `x < limit`.
    fn zero_below(self, a: Self::Floats, x: Self::Floats, limit: Self::Floats) -> Self::Floats;
    /// The largest lane; the lanes must be numbers.
    fn largest(self, a: Self::Floats) -> f32;
    /// The sum of all lanes, which must be whole numbers so small that every order gives the same.
    fn sum_of_whole(self, a: Self::Floats) -> f32;
    /// The first `count` lanes of `a`, and the rest of `b`.
    fn first(self, count: usize, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The nearest integers, ties to even, as floats.
    fn round(self, a: Self::Floats) -> Self::Floats;
    /// `a` times two to the power of `power`: whole numbers within -126 to 127 that leave the result normal.
    fn scale(self, a: Self::Floats, power: Self::Floats) -> Self::Floats;
    /// Writes sixteen little-endian FP16 numbers, rounded to the nearest, ties to even.
    fn store_f16(self, values: Self::Floats, to: &mut [u8; 2 * LANES]);
    /// The magnitude.
    fn abs(self, a: Self::Floats) -> Self::Floats;
    /// Whole numbers, which must be within -128 to 127.
    fn to_i8(self, a: Self::Floats) -> [i8; LANES];

    /// The same number in every lane.
    fn splat_int(self, value: i32) -> Self::Ints;
    /// The same four bytes in every lane.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn splat_four(self, four: [i8; 4]) -> Self::Ints {
        self.splat_int(i32::from_le_bytes(four.map(i8::cast_unsigned)))
    }
    /// Each lane shifted to the left, within 32 bits.
    fn shift_left<const BITS: u32>(self, a: Self::Ints) -> Self::Ints;
    /// The nearest `f32`, ties to even.
    fn to_floats(self, a: Self::Ints) -> Self::Floats;

    /// Reads 64 bytes.
    fn load_bytes(self, from: &[u8; 64]) -> Self::Bytes;
    /// The low four bits of every byte.
    fn low_nibbles(self, a: Self::Bytes) -> Self::Bytes;
    /// The high four bits of every byte.
    fn high_nibbles(self, a: Self::Bytes) -> Self::Bytes;
    /// `sums` plus, in lane `l`, the four products of the unsigned bytes `4 l` to `4 l + 3` of `a` with the
    /// signed bytes `b`; within 32 bits.
    fn dot(self, sums: Self::Ints, a: Self::Bytes, b: [i8; 4]) -> Self::Ints;

    /// Begins up to eight dot products with bytes of four bits, to be added to `sums`.
    fn begin_nibbles(self, sums: Self::Ints) -> Self::Nibbles;
    /// One of them, as [`Self::dot`]; no byte of `a` is above 15.
    fn dot_nibbles(self, dots: Self::Nibbles, a: Self::Bytes, b: [i8; 4]) -> Self::Nibbles;
    /// All of them, added to the `sums` that they were begun with.
    fn end_nibbles(self, dots: Self::Nibbles, sums: Self::Ints) -> Self::Ints;
}

//! How sixteen rows of each encoding are woven together, and how they are read again.
//!
//! A *group* is a whole number of cache lines that holds one or two blocks of all sixteen rows. Of a
//! quantised block the bytes are ordered for [`Isa::dot`]: four consecutive numbers of the first row, the
//! same four of the second, and so on. Four bits take half a byte: the low halves of a line are numbers `8 j`
//! to `8 j + 3` of the block, the high halves `8 j + 4` to `8 j + 7`.

use half::{bf16, f16};

use crate::isa::{Isa, LANES};

/// One cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; 64]);

    /// Its lower or upper half.
    #[inline(always)]
    pub(crate) fn half(&self, upper: bool) -> &[u8; 32] {
        let (halves, _) = self.0.as_chunks::<32>();
        &halves[usize::from(upper)]
    }
}

/// How an encoding is packed.
pub(crate) trait Format {
    /// Bytes of one row in a group, as in the file.
    const ROW_BYTES: usize;
    /// Lines of a group.
    const LINES: usize;

    /// Writes a part of row `lane` (at most [`Self::ROW_BYTES`], whole blocks) where it belongs in a group.
    fn weave(part: &[u8], lane: usize, group: &mut [Line]);
    /// Gives the numbers of row `lane` of a group back, in their order.
    fn numbers_of(group: &[Line], lane: usize, to: &mut impl FnMut(f32));
}

/// A format whose numbers are multiplied as bytes: `scale * (byte - offset) + minimum`.
pub(crate) trait Quantised: Format {
    /// How its bytes are multiplied.
    type Dots: Dots;
    /// Blocks in a group.
    const BLOCKS: usize;
    /// Whether there is a minimum.
    const HAS_MINIMUM: bool;

    /// What a dot product starts with for a row whose bytes have the sum `-offset`: what makes up for the
    /// offset that was added to the weights.
    fn start<I: Isa>(isa: I, offset: i32) -> I::Ints;
    /// The bytes of one block of a group: numbers `4 i` to `4 i + 3` of all rows.
    fn bytes<I: Isa>(isa: I, group: &[Line], block: usize) -> [I::Bytes; 8];
    /// The scales of a block: half of the group's last line.
    #[inline(always)]
    fn scales<I: Isa>(isa: I, group: &[Line], block: usize) -> I::Floats {
        isa.load_f16(group[Self::LINES - 1].half(block == 1))
    }
    /// The minima of a block, zero where there are none.
    #[inline(always)]
    fn minima<I: Isa>(isa: I, _group: &[Line], _block: usize) -> I::Floats {
        isa.splat(0.0)
    }
}

/// The dot products of the bytes of one block, eight of four bytes each, with those of one row.
pub(crate) trait Dots {
    /// Some of them.
    type Some<I: Isa>: Copy;

    /// Begins them, to be added to `sums`.
    fn begin<I: Isa>(isa: I, sums: I::Ints) -> Self::Some<I>;
    /// One more.
    fn dot<I: Isa>(isa: I, some: Self::Some<I>, bytes: I::Bytes, four: [i8; 4]) -> Self::Some<I>;
    /// All of them, added to the `sums` that they were begun with.
    fn end<I: Isa>(isa: I, all: Self::Some<I>, sums: I::Ints) -> I::Ints;
}

/// Of bytes up to 15.
#[derive(Debug)]
pub(crate) struct OfNibbles;

impl Dots for OfNibbles {
    type Some<I: Isa> = I::Nibbles;

    #[inline(always)]
    fn begin<I: Isa>(isa: I, sums: I::Ints) -> I::Nibbles {
        isa.begin_nibbles(sums)
    }

    #[inline(always)]
    fn dot<I: Isa>(isa: I, some: I::Nibbles, bytes: I::Bytes, four: [i8; 4]) -> I::Nibbles {
        isa.dot_nibbles(some, bytes, four)
    }

    #[inline(always)]
    fn end<I: Isa>(isa: I, all: I::Nibbles, sums: I::Ints) -> I::Ints {
        isa.end_nibbles(all, sums)
    }
}

/// Of any bytes.
#[derive(Debug)]
pub(crate) struct OfBytes;

impl Dots for OfBytes {
    type Some<I: Isa> = I::Ints;

    #[inline(always)]
    fn begin<I: Isa>(_isa: I, sums: I::Ints) -> I::Ints {
        sums
    }

    #[inline(always)]
    fn dot<I: Isa>(isa: I, some: I::Ints, bytes: I::Bytes, four: [i8; 4]) -> I::Ints {
        isa.dot(some, bytes, four)
    }

    #[inline(always)]
    fn end<I: Isa>(_isa: I, all: I::Ints, _sums: I::Ints) -> I::Ints {
        all
    }
}

/// A format whose numbers are multiplied as floats.
pub(crate) trait Float: Format {
    /// Numbers of a row in a group.
    const COUNT: usize;

    /// Number `index` of all rows of a group.
    fn numbers<I: Isa>(isa: I, group: &[Line], index: usize) -> I::Floats;
}

/// `d q + m` with 4 bits: four lines of bits, one of scales and minima.
#[derive(Debug)]
pub(crate) struct Q4_1;

impl Format for Q4_1 {
    const ROW_BYTES: usize = 20;
    const LINES: usize = 5;

    fn weave(part: &[u8], lane: usize, group: &mut [Line]) {
        for block in part.chunks_exact(Self::ROW_BYTES) {
            let (scales, bits) = block.split_at(4);
            group[4].0[2 * lane..][..2].copy_from_slice(&scales[..2]);
            group[4].0[32 + 2 * lane..][..2].copy_from_slice(&scales[2..]);
            weave_nibbles(bits, lane, &mut group[..4]);
        }
    }

    fn numbers_of(group: &[Line], lane: usize, to: &mut impl FnMut(f32)) {
        let (scale, minimum) = (half(&group[4], false, lane), half(&group[4], true, lane));
        for number in 0..32 {
            to(scale * f32::from(nibble(group, lane, number)) + minimum);
        }
    }
}

impl Quantised for Q4_1 {
    type Dots = OfNibbles;

    const BLOCKS: usize = 1;
    const HAS_MINIMUM: bool = true;

    #[inline(always)]
    fn start<I: Isa>(isa: I, _offset: i32) -> I::Ints {
        isa.splat_int(0)
    }

    #[inline(always)]
    fn bytes<I: Isa>(isa: I, group: &[Line], _block: usize) -> [I::Bytes; 8] {
        nibbles(isa, group)
    }

    #[inline(always)]
    fn minima<I: Isa>(isa: I, group: &[Line], _block: usize) -> I::Floats {
        isa.load_f16(group[4].half(true))
    }
}

/// `d (q - 8)` with 4 bits: twice four lines of bits, one of scales.
#[derive(Debug)]
pub(crate) struct Q4_0;

impl Format for Q4_0 {
    const ROW_BYTES: usize = 36;
    const LINES: usize = 9;

    fn weave(part: &[u8], lane: usize, group: &mut [Line]) {
        for (index, block) in part.chunks_exact(18).enumerate() {
            let (scale, bits) = block.split_at(2);
            group[8].0[32 * index + 2 * lane..][..2].copy_from_slice(scale);
            weave_nibbles(bits, lane, &mut group[4 * index..][..4]);
        }
    }

    fn numbers_of(group: &[Line], lane: usize, to: &mut impl FnMut(f32)) {
        for (block, lines) in group[..8].chunks_exact(4).enumerate() {
            let scale = half(&group[8], block == 1, lane);
            for number in 0..32 {
                to(scale * (f32::from(nibble(lines, lane, number)) - 8.0));
            }
        }
    }
}

impl Quantised for Q4_0 {
    type Dots = OfNibbles;

    const BLOCKS: usize = 2;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn start<I: Isa>(isa: I, offset: i32) -> I::Ints {
        isa.shift_left::<3>(isa.splat_int(offset))
    }

    #[inline(always)]
    fn bytes<I: Isa>(isa: I, group: &[Line], block: usize) -> [I::Bytes; 8] {
        nibbles(isa, &group[4 * block..])
    }
}

/// `d q` with 8 bits, made unsigned by adding 128: twice eight lines of bytes, one of scales.
#[derive(Debug)]
pub(crate) struct Q8_0;

impl Format for Q8_0 {
    const ROW_BYTES: usize = 68;
    const LINES: usize = 17;

    fn weave(part: &[u8], lane: usize, group: &mut [Line]) {
        for (index, block) in part.chunks_exact(34).enumerate() {
            let (scale, bytes) = block.split_at(2);
            group[16].0[32 * index + 2 * lane..][..2].copy_from_slice(scale);
            for (four, line) in bytes.chunks_exact(4).zip(&mut group[8 * index..]) {
                for (byte, to) in four.iter().zip(&mut line.0[4 * lane..]) {
                    *to = byte ^ 0x80;
                }
            }
        }
    }

    fn numbers_of(group: &[Line], lane: usize, to: &mut impl FnMut(f32)) {
        for (block, lines) in group[..16].chunks_exact(8).enumerate() {
            let scale = half(&group[16], block == 1, lane);
            for number in 0..32 {
                let byte = lines[number / 4].0[4 * lane + number % 4];
                to(scale * f32::from((byte ^ 0x80).cast_signed()));
            }
        }
    }
}

impl Quantised for Q8_0 {
    type Dots = OfBytes;

    const BLOCKS: usize = 2;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn start<I: Isa>(isa: I, offset: i32) -> I::Ints {
        isa.shift_left::<7>(isa.splat_int(offset))
    }

    #[inline(always)]
    fn bytes<I: Isa>(isa: I, group: &[Line], block: usize) -> [I::Bytes; 8] {
        let mut bytes = [isa.load_bytes(&Line::ZERO.0); 8];
        for (bytes, line) in bytes.iter_mut().zip(&group[8 * block..]) {
            *bytes = isa.load_bytes(&line.0);
        }
        bytes
    }
}

/// One number of all rows in a line.
#[derive(Debug)]
pub(crate) struct F32;

impl Format for F32 {
    const ROW_BYTES: usize = 4;
    const LINES: usize = 1;

    fn weave(part: &[u8], lane: usize, group: &mut [Line]) {
        group[0].0[4 * lane..][..4].copy_from_slice(part);
    }

    fn numbers_of(group: &[Line], lane: usize, to: &mut impl FnMut(f32)) {
        let (numbers, _) = group[0].0.as_chunks::<4>();
        to(f32::from_le_bytes(numbers[lane]));
    }
}

impl Float for F32 {
    const COUNT: usize = 1;

    #[inline(always)]
    fn numbers<I: Isa>(isa: I, group: &[Line], _index: usize) -> I::Floats {
        let (numbers, _) = group[0].0.as_chunks::<4>();
        let numbers: [f32; LANES] = std::array::from_fn(|lane| f32::from_le_bytes(numbers[lane]));
        isa.load(&numbers)
    }
}

/// Two numbers of all rows in a line.
#[derive(Debug)]
pub(crate) struct F16;

impl Format for F16 {
    const ROW_BYTES: usize = 4;
    const LINES: usize = 1;

    fn weave(part: &[u8], lane: usize, group: &mut [Line]) {
        weave_halves(part, lane, group);
    }

    fn numbers_of(group: &[Line], lane: usize, to: &mut impl FnMut(f32)) {
        for upper in [false, true] {
            to(half(&group[0], upper, lane));
        }
    }
}

impl Float for F16 {
    const COUNT: usize = 2;

    #[inline(always)]
    fn numbers<I: Isa>(isa: I, group: &[Line], index: usize) -> I::Floats {
        isa.load_f16(group[0].half(index == 1))
    }
}

/// Two numbers of all rows in a line.
#[derive(Debug)]
pub(crate) struct Bf16;

impl Format for Bf16 {
    const ROW_BYTES: usize = 4;
    const LINES: usize = 1;

    fn weave(part: &[u8], lane: usize, group: &mut [Line]) {
        weave_halves(part, lane, group);
    }

    fn numbers_of(group: &[Line], lane: usize, to: &mut impl FnMut(f32)) {
        for upper in [false, true] {
            let (numbers, _) = group[0].half(upper).as_chunks::<2>();
            to(bf16::from_le_bytes(numbers[lane]).to_f32());
        }
    }
}

impl Float for Bf16 {
    const COUNT: usize = 2;

    #[inline(always)]
    fn numbers<I: Isa>(isa: I, group: &[Line], index: usize) -> I::Floats {
        isa.load_bf16(group[0].half(index == 1))
    }
}

/// The file has number `i` of a block in the low half of byte `i`, and number `i + 16` in its high half.
fn weave_nibbles(bits: &[u8], lane: usize, lines: &mut [Line]) {
    let number = |index: usize| if index < 16 { bits[index] & 0x0f } else { bits[index - 16] >> 4 };
    for (line, to) in lines.iter_mut().enumerate() {
        for byte in 0..4 {
            let low = 8 * line + byte;
            to.0[4 * lane + byte] = number(low) | number(low + 4) << 4;
        }
    }
}

/// Number `number` of a block of row `lane`, as [`weave_nibbles`] wrote it.
fn nibble(lines: &[Line], lane: usize, number: usize) -> u8 {
    let both = lines[number / 8].0[4 * lane + number % 4];
    if number % 8 < 4 { both & 0x0f } else { both >> 4 }
}

/// One FP16 number of half a line.
fn half(line: &Line, upper: bool, lane: usize) -> f32 {
    let (numbers, _) = line.half(upper).as_chunks::<2>();
    f16::from_le_bytes(numbers[lane]).to_f32()
}

fn weave_halves(part: &[u8], lane: usize, group: &mut [Line]) {
    for (index, number) in part.chunks_exact(2).enumerate() {
        group[0].0[32 * index + 2 * lane..][..2].copy_from_slice(number);
    }
}

#[inline(always)]
fn nibbles<I: Isa>(isa: I, lines: &[Line]) -> [I::Bytes; 8] {
    let mut bytes = [isa.load_bytes(&Line::ZERO.0); 8];
    for (pair, line) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(lines) {
        let both = isa.load_bytes(&line.0);
        *pair = [isa.low_nibbles(both), isa.high_nibbles(both)];
    }
    bytes
}

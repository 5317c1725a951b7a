//! GGML's tensor types by number. The ones that are not computed with are here with their sizes, so that a
//! file which has them can be checked to its end, and with their names, so that an error can say which it is.

use quadrant_kernels::Encoding;

use super::cursor::Cursor;
use crate::error::FileError;
use crate::tensor::{Format, convert_it};

/// Reads the number of a tensor's type.
pub(super) fn format(cursor: &mut Cursor<'_>) -> Result<Format, FileError> {
    let before = *cursor;
    let number = cursor.u32()?;
    format_of(number).ok_or_else(|| {
        let known = if is_retired(number) { "GGML has given up" } else { "this engine does not know" };
        before.unsupported(&format!("has the type `{number}`, which {known}"), convert_it())
    })
}

const fn is_retired(number: u32) -> bool {
    matches!(number, 4 | 5 | 31..=33 | 36..=38)
}

const fn format_of(number: u32) -> Option<Format> {
    Some(match number {
        0 => Format::computable(Encoding::F32),
        1 => Format::computable(Encoding::F16),
        2 => Format::computable(Encoding::Q4_0),
        3 => Format::computable(Encoding::Q4_1),
        6 => Format::opaque("Q5_0", 32, 22),
        7 => Format::opaque("Q5_1", 32, 24),
        8 => Format::computable(Encoding::Q8_0),
        9 => Format::opaque("Q8_1", 32, 36),
        10 => Format::opaque("Q2_K", 256, 84),
        11 => Format::opaque("Q3_K", 256, 110),
        12 => Format::opaque("Q4_K", 256, 144),
        13 => Format::opaque("Q5_K", 256, 176),
        14 => Format::opaque("Q6_K", 256, 210),
        15 => Format::opaque("Q8_K", 256, 292),
        16 => Format::opaque("IQ2_XXS", 256, 66),
        17 => Format::opaque("IQ2_XS", 256, 74),
        18 => Format::opaque("IQ3_XXS", 256, 98),
        19 => Format::opaque("IQ1_S", 256, 50),
        20 => Format::opaque("IQ4_NL", 32, 18),
        21 => Format::opaque("IQ3_S", 256, 110),
        22 => Format::opaque("IQ2_S", 256, 82),
        23 => Format::opaque("IQ4_XS", 256, 136),
        24 => Format::opaque("I8", 1, 1),
        25 => Format::opaque("I16", 1, 2),
        26 => Format::opaque("I32", 1, 4),
        27 => Format::opaque("I64", 1, 8),
        28 => Format::opaque("F64", 1, 8),
        29 => Format::opaque("IQ1_M", 256, 56),
        30 => Format::computable(Encoding::Bf16),
        34 => Format::opaque("TQ1_0", 256, 54),
        35 => Format::opaque("TQ2_0", 256, 66),
        39 => Format::opaque("MXFP4", 32, 17),
        40 => Format::opaque("NVFP4", 64, 36),
        41 => Format::opaque("Q1_0", 128, 18),
        _ => return None,
    })
}

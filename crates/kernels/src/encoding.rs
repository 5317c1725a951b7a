//! How the numbers of a weight matrix are written in a file.

/// An encoding of weights. The quantised ones are those of GGUF (ggml's `block_q4_0` and so on): blocks of
/// [`Encoding::block`] numbers along a row, each with a scale in FP16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// 4 bits `q` and a scale `d`: `d (q - 8)`.
    Q4_0,
    /// 4 bits `q`, a scale `d` and a minimum `m`: `d q + m`.
    Q4_1,
    /// 8 bits `q`, signed, and a scale `d`: `d q`.
    Q8_0,
}

impl Encoding {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Bf16, Self::Q4_0, Self::Q4_1, Self::Q8_0];

    /// Numbers in a block.
    pub const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }

    /// Bytes of `numbers` numbers; `None` if they are not whole blocks, or too many to count.
    pub fn bytes(self, numbers: usize) -> Option<usize> {
        let whole = numbers.is_multiple_of(self.block());
        whole.then(|| (numbers / self.block()).checked_mul(self.block_bytes())).flatten()
    }

    /// Its usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
        }
    }

    /// Whether the rows that it is multiplied with are quantised too.
    pub(crate) const fn is_quantised(self) -> bool {
        self.block() > 1
    }
}

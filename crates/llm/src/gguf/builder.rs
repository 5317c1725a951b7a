//! Writes small GGUF files for tests: good ones, and ones that are wrong in a chosen place.

use super::value::ValueType;

/// A file in the making. Nothing that it is given is checked.
pub(crate) struct GgufBuilder {
    magic: [u8; 4],
    version: u32,
    entry_count: u64,
    entries: Vec<u8>,
    tensor_count: u64,
    tensors: Vec<u8>,
    weights: Vec<u8>,
    alignment: usize,
}

impl GgufBuilder {
    /// A file of version 3 without anything.
    pub(crate) fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            entry_count: 0,
            entries: Vec::new(),
            tensor_count: 0,
            tensors: Vec::new(),
            weights: Vec::new(),
            alignment: 32,
        }
    }

    pub(crate) fn magic(self, magic: [u8; 4]) -> Self {
        Self { magic, ..self }
    }

    pub(crate) fn version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// Says that there are so many tensors and entries, besides those that are added after this.
    pub(crate) fn claiming(self, tensor_count: u64, entry_count: u64) -> Self {
        Self { tensor_count, entry_count, ..self }
    }

    /// Where the weights begin, and each tensor; without an entry that says so.
    pub(crate) fn aligned(self, alignment: usize) -> Self {
        Self { alignment, ..self }
    }

    /// An entry whose value is written as `value`.
    pub(crate) fn entry(mut self, key: impl AsRef<[u8]>, of: ValueType, value: &[u8]) -> Self {
        self.entry_count = self.entry_count.wrapping_add(1);
        self.entries.extend(text(key));
        self.entries.extend(number_of(of).to_le_bytes());
        self.entries.extend(value);
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.entry(key, ValueType::U32, &value.to_le_bytes())
    }

    pub(crate) fn array(self, key: &str, of: ValueType, count: u64, values: &[u8]) -> Self {
        self.entry(key, ValueType::Array, &array(of, count, values))
    }

    /// A tensor behind those before it. Its dimensions are as in the file, the innermost first.
    pub(crate) fn tensor(mut self, name: &str, dimensions: &[u64], number: u32, bytes: &[u8]) -> Self {
        self.weights.resize(self.weights.len().next_multiple_of(self.alignment), 0);
        let offset = self.weights.len() as u64;
        self.weights.extend(bytes);
        self.described(name, dimensions, number, offset)
    }

    /// The description of a tensor that may not be there.
    pub(crate) fn described(mut self, name: &str, dimensions: &[u64], number: u32, offset: u64) -> Self {
        self.tensor_count = self.tensor_count.wrapping_add(1);
        self.tensors.extend(text(name));
        self.tensors.extend(u32::try_from(dimensions.len()).unwrap().to_le_bytes());
        self.tensors.extend(dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
        self.tensors.extend(number.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self
    }

    /// The file, which ends with the last byte of the last tensor.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut file = [&self.magic[..], &self.version.to_le_bytes()].concat();
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.entry_count.to_le_bytes());
        file.extend(self.entries);
        file.extend(self.tensors);
        if !self.weights.is_empty() {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
        }
        file.extend(self.weights);
        file
    }
}

/// A text as the format writes it.
pub(crate) fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// The value of an array as the format writes it.
pub(crate) fn array(of: ValueType, count: u64, values: &[u8]) -> Vec<u8> {
    [&number_of(of).to_le_bytes()[..], &count.to_le_bytes(), values].concat()
}

fn number_of(of: ValueType) -> u32 {
    let place = ValueType::ALL.iter().position(|each| *each == of).unwrap();
    u32::try_from(place).unwrap()
}

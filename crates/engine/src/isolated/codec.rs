//! Numbers and texts as bytes, little-endian, and back.
//!
//! Whatever is read was written by another process, which may be broken: every length is compared with
//! what is there and with a limit before anything is made of it, and nothing may be left over.

use std::sync::Arc;

use quadrant_types::{DataType, Shape};

/// The longest text.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// The most inputs or outputs of a model, and elements of any other list.
const COUNT_MAX: usize = 4_096;
/// The most dimensions of a tensor.
const RANK_MAX: usize = 64;

/// What was read is not what can have been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message is broken: {0}")]
pub(super) struct Broken(pub(super) &'static str);

/// Appends to a message.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn over(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn done(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn short(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn long(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn size(&mut self, value: usize) {
        self.long(value as u64);
    }

    /// A text, cut where it is longer than a reader takes.
    pub(super) fn text(&mut self, text: &str) {
        self.bytes(&text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]);
    }

    /// At most as many bytes as a text may have.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
        self.short(u32::try_from(bytes.len()).expect("it was cut"));
        self.0.extend_from_slice(bytes);
    }

    /// How many there are, then each.
    pub(super) fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.short(u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            write(self, item);
        }
    }

    /// Whether there is one, then it.
    pub(super) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.byte(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub(super) fn datatype(&mut self, datatype: DataType) {
        let number = DataType::ALL.iter().position(|known| *known == datatype).unwrap_or_default();
        self.byte(u8::try_from(number).expect("there are few types"));
    }

    pub(super) fn shape(&mut self, shape: &Shape) {
        self.list(shape, |writer, dim| writer.size(*dim));
    }
}

/// Takes a message apart.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// That nothing is left.
    pub(super) fn end(&self) -> Result<(), Broken> {
        if self.0.is_empty() { Ok(()) } else { Err(Broken("it is longer than what it says")) }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Broken("it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const COUNT: usize>(&mut self) -> Result<[u8; COUNT], Broken> {
        let taken = self.take(COUNT)?;
        Ok(taken.try_into().expect("so many were taken"))
    }

    pub(super) fn byte(&mut self) -> Result<u8, Broken> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn short(&mut self) -> Result<u32, Broken> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn long(&mut self) -> Result<u64, Broken> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn size(&mut self) -> Result<usize, Broken> {
        usize::try_from(self.long()?).map_err(|_| Broken("a size is beyond this machine's"))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Broken> {
        let length = self.short()? as usize;
        if length > TEXT_BYTES_MAX {
            return Err(Broken("a text is too long"));
        }
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<String, Broken> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    pub(super) fn name(&mut self) -> Result<Arc<str>, Broken> {
        Ok(self.text()?.into())
    }

    pub(super) fn list<T>(
        &mut self,
        read: impl FnMut(&mut Self) -> Result<T, Broken>,
    ) -> Result<Vec<T>, Broken> {
        self.list_up_to(COUNT_MAX, read)
    }

    fn list_up_to<T>(
        &mut self,
        count_max: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, Broken>,
    ) -> Result<Vec<T>, Broken> {
        let count = self.short()? as usize;
        if count > count_max {
            return Err(Broken("a list is too long"));
        }
        // Not with this capacity at once: the count is only a claim.
        (0..count).map(|_| read(self)).collect()
    }

    pub(super) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Broken>,
    ) -> Result<Option<T>, Broken> {
        match self.byte()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(Broken("neither something nor nothing")),
        }
    }

    pub(super) fn datatype(&mut self) -> Result<DataType, Broken> {
        let number = usize::from(self.byte()?);
        DataType::ALL.get(number).copied().ok_or(Broken("a type does not exist"))
    }

    pub(super) fn shape(&mut self) -> Result<Shape, Broken> {
        Ok(Shape::from_vec(self.list_up_to(RANK_MAX, Self::size)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.byte(7);
        writer.text("käse");
        writer.shape(&Shape::from_slice(&[1, 0, usize::MAX]));
        writer.option(Some(5_u64), Writer::long);
        writer.option(None::<u64>, Writer::long);
        DataType::ALL.into_iter().for_each(|datatype| writer.datatype(datatype));
        let bytes = writer.done();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.byte(), Ok(7));
        assert_eq!(reader.text(), Ok("käse".to_owned()));
        assert_eq!(reader.shape(), Ok(Shape::from_slice(&[1, 0, usize::MAX])));
        assert_eq!(reader.option(Reader::long), Ok(Some(5)));
        assert_eq!(reader.option(Reader::long), Ok(None));
        DataType::ALL.into_iter().for_each(|datatype| assert_eq!(reader.datatype(), Ok(datatype)));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn what_cannot_have_been_written_is_refused() {
        let broken = |bytes: &[u8]| (Reader::new(bytes).text().is_err(), Reader::new(bytes).shape().is_err());
        assert_eq!(broken(&[1, 0]), (true, true), "cut off in the length");
        assert_eq!(broken(&[9, 0, 0, 0, 1]), (true, true), "cut off in the content");
        assert_eq!(broken(&[0xff; 300]), (true, true), "a count beyond every limit");
        assert!(Reader::new(&[200]).datatype().is_err());
        assert!(Reader::new(&[2, 0]).option(Reader::byte).is_err());
        assert!(Reader::new(&[0]).end().is_err());
        assert_eq!(Reader::new(&[1, 0, 0, 0, 0xff]).text().unwrap(), "\u{fffd}");
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_at_a_letter() {
        let mut writer = Writer::default();
        writer.text(&"é".repeat(TEXT_BYTES_MAX));
        let bytes = writer.done();
        assert_eq!(Reader::new(&bytes).text().unwrap().len(), TEXT_BYTES_MAX);
    }
}

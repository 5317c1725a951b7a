//! What a file says about its model, by key, with getters that say what they wanted and what they found.
//!
//! The format lets a writer choose the width of an integer, and writers differ; so an integer is asked for
//! by what it must fit into, and found whatever its type. Nothing else is converted.

use std::collections::BTreeMap;

use super::cursor::{Cursor, Place};
use super::value::{Array, Value, ValueType};
use crate::error::{FileError, Quoted};

/// The length of a key, a type and the smallest value.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 1;
/// Files have a few dozen.
const ENTRIES_MAX: usize = 1 << 16;

/// The metadata of a file. What a key means is its reader's business.
#[derive(Debug)]
pub struct Metadata<'a> {
    entries: BTreeMap<&'a str, Entry<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    value: Value<'a>,
    at: usize,
}

impl<'a> Metadata<'a> {
    pub(super) fn read(cursor: &mut Cursor<'a>, count: u64) -> Result<Self, FileError> {
        cursor.enter(Place::Metadata);
        if cursor.room_for(count, ENTRY_BYTES_MIN)? > ENTRIES_MAX {
            return Err(cursor.malformed(&format!("has `{count}` entries, more than `{ENTRIES_MAX}`")));
        }
        let mut entries = BTreeMap::new();
        for index in 0..count {
            let at = cursor.at();
            cursor.enter(Place::Key(index));
            let key = cursor.string()?;
            cursor.enter(Place::Value(key));
            let of = ValueType::read(cursor)?;
            let value = Value::read(cursor, of, 0)?;
            if entries.insert(key, Entry { value, at }).is_some() {
                let what = format!("the metadata has {} twice", Quoted(key));
                return Err(FileError::Malformed { what, offset: at });
            }
        }
        Ok(Self { entries })
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every key with its value, in alphabetical order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a str, Value<'a>)> {
        self.entries.iter().map(|(key, entry)| (*key, entry.value))
    }

    /// The value at `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.entries.get(key).map(|entry| entry.value)
    }

    /// An integer that fits into a `u32`.
    ///
    /// # Errors
    /// [`FileError::Missing`] without the key, [`FileError::Malformed`] if there is something else.
    pub fn u32(&self, key: &str) -> Result<u32, FileError> {
        self.convert(key, "u32", |value| value.integer()?.try_into().ok())
    }

    /// An `f32`.
    ///
    /// # Errors
    /// As [`Self::u32`].
    pub fn f32(&self, key: &str) -> Result<f32, FileError> {
        self.convert(key, "f32", as_f32)
    }

    /// A `bool`.
    ///
    /// # Errors
    /// As [`Self::u32`].
    pub fn bool(&self, key: &str) -> Result<bool, FileError> {
        self.convert(key, "bool", |value| if let Value::Bool(truth) = value { Some(truth) } else { None })
    }

    /// A text, where it lies in the file.
    ///
    /// # Errors
    /// As [`Self::u32`].
    pub fn str(&self, key: &str) -> Result<&'a str, FileError> {
        self.convert(key, "str", as_str)
    }

    /// An array of texts, where they lie in the file.
    ///
    /// # Errors
    /// As [`Self::u32`].
    pub fn strs(&self, key: &str) -> Result<Vec<&'a str>, FileError> {
        self.convert_all(key, "array of str", as_str)
    }

    /// An array of integers, each of which fits into an `i32`.
    ///
    /// # Errors
    /// As [`Self::u32`].
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>, FileError> {
        self.convert_all(key, "array of i32", |value| value.integer()?.try_into().ok())
    }

    /// An array of `f32`.
    ///
    /// # Errors
    /// As [`Self::u32`].
    pub fn f32s(&self, key: &str) -> Result<Vec<f32>, FileError> {
        self.convert_all(key, "array of f32", as_f32)
    }

    /// Where in the file the entry of `key` is.
    pub(super) fn place_of(&self, key: &str) -> usize {
        self.entries.get(key).map_or(0, |entry| entry.at)
    }

    fn convert<T>(
        &self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<T, FileError> {
        let entry = self.entries.get(key);
        let missing = || FileError::Missing { what: format!("metadata {}", Quoted(key)) };
        let Entry { value, at } = *entry.ok_or_else(missing)?;
        convert(value).ok_or_else(|| {
            let what = format!("{} is {value}, where {wanted} is wanted", Quoted(key));
            FileError::Malformed { what, offset: at }
        })
    }

    fn convert_all<T>(
        &self,
        key: &str,
        wanted: &str,
        convert: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Vec<T>, FileError> {
        let array: Array<'a> = self
            .convert(key, wanted, |value| if let Value::Array(array) = value { Some(array) } else { None })?;
        let convert = |value: Result<Value<'a>, FileError>| {
            let value = value?;
            convert(value).ok_or_else(|| {
                let what = format!("{} holds {value}, where {wanted} is wanted", Quoted(key));
                FileError::Malformed { what, offset: self.place_of(key) }
            })
        };
        array.values().map(convert).collect()
    }
}

fn as_f32(value: Value<'_>) -> Option<f32> {
    if let Value::F32(number) = value { Some(number) } else { None }
}

fn as_str(value: Value<'_>) -> Option<&str> {
    if let Value::Str(text) = value { Some(text) } else { None }
}

//! The values of metadata: the thirteen types of the format.
//!
//! An array is checked once when the file is parsed, and stays in the file until somebody asks for what it
//! holds: the tokens of a vocabulary cost nothing for whoever only wants the weights.

use std::fmt;

use super::cursor::Cursor;
use crate::error::FileError;

/// How deep arrays may nest. No model that we know of nests them at all, and GGML cannot read such files.
const DEPTH_MAX: usize = 4;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// Every type, in the order of the format's numbers.
    pub const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "str",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, FileError> {
        let before = *cursor;
        let number = cursor.u32()?;
        let known = usize::try_from(number).ok().and_then(|number| Self::ALL.get(number));
        known.copied().ok_or_else(|| before.malformed(&format!("has the unknown type `{number}`")))
    }

    /// How many bytes a value of this type takes at least: a text its length, an array its type and length.
    const fn bytes_min(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
            Self::Array => 12,
        }
    }

    /// Whether there is more to know of a value than its length.
    const fn is_checked(self) -> bool {
        match self {
            Self::Bool | Self::Str | Self::Array => true,
            Self::U8 | Self::I8 | Self::U16 | Self::I16 | Self::U32 | Self::I32 => false,
            Self::U64 | Self::I64 | Self::F32 | Self::F64 => false,
        }
    }
}

/// A value of metadata.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// Reads a value that lies within `depth` arrays.
    pub(super) fn read(cursor: &mut Cursor<'a>, of: ValueType, depth: usize) -> Result<Self, FileError> {
        Ok(match of {
            ValueType::U8 => Self::U8(u8::from_le_bytes(cursor.array()?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(cursor.array()?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(cursor.array()?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(cursor.array()?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(cursor.array()?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(cursor.array()?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(cursor.array()?)),
            ValueType::Bool => Self::Bool(read_bool(cursor)?),
            ValueType::Str => Self::Str(cursor.string()?),
            ValueType::Array => Self::Array(Array::read(cursor, depth)?),
            ValueType::U64 => Self::U64(u64::from_le_bytes(cursor.array()?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(cursor.array()?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(cursor.array()?)),
        })
    }

    /// The number, if it is an integer of any type.
    pub fn integer(self) -> Option<i128> {
        match self {
            Self::U8(number) => Some(number.into()),
            Self::I8(number) => Some(number.into()),
            Self::U16(number) => Some(number.into()),
            Self::I16(number) => Some(number.into()),
            Self::U32(number) => Some(number.into()),
            Self::I32(number) => Some(number.into()),
            Self::U64(number) => Some(number.into()),
            Self::I64(number) => Some(number.into()),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::Str(_) | Self::Array(_) => None,
        }
    }
}

fn read_bool(cursor: &mut Cursor<'_>) -> Result<bool, FileError> {
    let before = *cursor;
    match cursor.array()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(before.malformed(&format!("is the bool `{other}`, which is neither `0` nor `1`"))),
    }
}

/// What it is, for messages: texts and arrays may be long, so they are only named.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(number) => write!(f, "the u8 `{number}`"),
            Self::I8(number) => write!(f, "the i8 `{number}`"),
            Self::U16(number) => write!(f, "the u16 `{number}`"),
            Self::I16(number) => write!(f, "the i16 `{number}`"),
            Self::U32(number) => write!(f, "the u32 `{number}`"),
            Self::I32(number) => write!(f, "the i32 `{number}`"),
            Self::F32(number) => write!(f, "the f32 `{number}`"),
            Self::Bool(truth) => write!(f, "the bool `{truth}`"),
            Self::Str(_) => f.write_str("a str"),
            Self::Array(array) => write!(f, "an array of {}", array.of.name()),
            Self::U64(number) => write!(f, "the u64 `{number}`"),
            Self::I64(number) => write!(f, "the i64 `{number}`"),
            Self::F64(number) => write!(f, "the f64 `{number}`"),
        }
    }
}

/// An array in the file, whose values are read when they are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a> {
    of: ValueType,
    count: usize,
    first: Cursor<'a>,
}

impl<'a> Array<'a> {
    fn read(cursor: &mut Cursor<'a>, depth: usize) -> Result<Self, FileError> {
        if depth == DEPTH_MAX {
            return Err(cursor.malformed(&format!("is an array within `{DEPTH_MAX}` arrays, too deep")));
        }
        let of = ValueType::read(cursor)?;
        let count = cursor.u64()?;
        let array = Self { of, count: cursor.room_for(count, of.bytes_min())?, first: *cursor };
        if of.is_checked() {
            for _ in 0..count {
                Value::read(cursor, of, depth + 1)?;
            }
        } else {
            cursor.take(count * of.bytes_min())?;
        }
        Ok(array)
    }

    /// What its values are.
    pub fn of(&self) -> ValueType {
        self.of
    }

    /// How many values it has.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its values. They were checked when the file was parsed, so an error means that the file has changed.
    pub fn values(self) -> impl Iterator<Item = Result<Value<'a>, FileError>> {
        let Self { of, count, mut first } = self;
        (0..count).map(move |_| Value::read(&mut first, of, 1))
    }
}

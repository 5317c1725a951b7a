//! The classification extension: instead of a tensor, the best classes of each of its rows, as strings
//! `score:index` or `score:index:label`.
//!
//! The classes are along the last dimension, whatever comes before it. For one vector per row that is what
//! Triton does; Triton ranks all elements of a row together when there are more dimensions, which says
//! nothing about, for example, the characters of a line of text.

use std::cmp::Ordering;
use std::fmt::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use quadrant_types::{DataType, Error, ErrorCode, Shape, Tensor};

/// The tensor of strings that says the `count` best classes of each row.
///
/// # Errors
/// A tensor without numbers, or whose bytes are not what its shape says.
pub(crate) fn classify(tensor: &Tensor, count: usize, labels: &[String]) -> Result<Tensor, Error> {
    let Tensor { datatype, shape, data } = tensor;
    let classes = shape.last().copied().unwrap_or(1);
    let size = datatype.size().unwrap_or(0);
    if size == 0
        || quadrant_types::element_count(shape).and_then(|count| count.checked_mul(size)) != Some(data.len())
    {
        let what =
            format!("cannot rank an output of {} bytes, type {datatype} and shape {shape:?}", data.len());
        return Err(Error::new(ErrorCode::Internal, what));
    }
    let count = count.min(classes);
    let rank = |row: &[u8]| match datatype {
        DataType::Fp32 => ranked(row, count, f32::from_le_bytes),
        DataType::Fp64 => ranked(row, count, f64::from_le_bytes),
        DataType::Fp16 => ranked(row, count, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DataType::Bf16 => ranked(row, count, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        DataType::Int8 => ranked(row, count, i8::from_le_bytes),
        DataType::Int16 => ranked(row, count, i16::from_le_bytes),
        DataType::Int32 => ranked(row, count, i32::from_le_bytes),
        DataType::Int64 => ranked(row, count, i64::from_le_bytes),
        DataType::Uint8 | DataType::Bool | DataType::Bytes => ranked(row, count, u8::from_le_bytes),
        DataType::Uint16 => ranked(row, count, u16::from_le_bytes),
        DataType::Uint32 => ranked(row, count, u32::from_le_bytes),
        DataType::Uint64 => ranked(row, count, u64::from_le_bytes),
    };
    let mut strings = BytesMut::new();
    let mut text = String::new();
    for row in data.chunks_exact((classes * size).max(1)) {
        for (score, index) in rank(row) {
            text.clear();
            match score {
                Score::Float(value) => write!(text, "{value:.6}:{index}"),
                Score::Int(value) => write!(text, "{value}:{index}"),
            }
            .expect("a string takes any text");
            if let Some(label) = labels.get(index) {
                text.push(':');
                text.push_str(label);
            }
            strings.put_u32_le(u32::try_from(text.len()).expect("a label is short"));
            strings.put_slice(text.as_bytes());
        }
    }
    let mut shape = shape.clone();
    match shape.last_mut() {
        Some(last) => *last = count,
        None => shape = Shape::from_slice(&[count]),
    }
    Ok(Tensor { datatype: DataType::Bytes, shape, data: Bytes::from(strings) })
}

/// A score as it is printed: `%f`, or as an integer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Score {
    Float(f64),
    Int(i128),
}

/// A number that can be ranked and printed.
trait Ranked: Copy + PartialOrd {
    /// Whether it has no place in the order.
    fn is_unordered(self) -> bool;
    fn score(self) -> Score;
}

macro_rules! ranked {
    ($($number:ty => $score:ident),*) => {$(
        impl Ranked for $number {
            fn is_unordered(self) -> bool {
                self.partial_cmp(&self).is_none()
            }

            fn score(self) -> Score {
                Score::$score(self.into())
            }
        }
    )*};
}
ranked!(f32 => Float, f64 => Float, i8 => Int, i16 => Int, i32 => Int, i64 => Int);
ranked!(u8 => Int, u16 => Int, u32 => Int, u64 => Int);

/// Ranks by insertion up to this many classes: nearly every element is compared once, with the worst.
const INSERTION_MAX: usize = 32;

/// The best `count` elements of a row with their places, the best first; of equals the earlier; what is
/// not a number last.
fn ranked<const SIZE: usize, T: Ranked>(
    row: &[u8],
    count: usize,
    read: impl Fn([u8; SIZE]) -> T,
) -> Vec<(Score, usize)> {
    let (elements, _) = row.as_chunks::<SIZE>();
    let best = match count {
        0 => Vec::new(),
        1 => best_one(elements, &read),
        2..=INSERTION_MAX => best_few(elements, count, &read),
        _ => best_many(elements, count, &read),
    };
    best.into_iter().map(|(value, index)| (value.score(), index)).collect()
}

/// The largest value is found first and its place after, because the first loop has no branch and is
/// vectorised.
fn best_one<const SIZE: usize, T: Ranked>(
    elements: &[[u8; SIZE]],
    read: &impl Fn([u8; SIZE]) -> T,
) -> Vec<(T, usize)> {
    let values = || elements.iter().map(|element| read(*element));
    let largest =
        values().reduce(|best, value| if value > best || best.is_unordered() { value } else { best });
    let place = |best: T| values().position(|value| value == best).unwrap_or(0);
    largest.map(|best| (best, place(best))).into_iter().collect()
}

fn best_few<const SIZE: usize, T: Ranked>(
    elements: &[[u8; SIZE]],
    count: usize,
    read: &impl Fn([u8; SIZE]) -> T,
) -> Vec<(T, usize)> {
    let mut best: Vec<(T, usize)> = Vec::with_capacity(count + 1);
    for (index, element) in elements.iter().enumerate() {
        let candidate = (read(*element), index);
        if best.len() == count && !precedes(&candidate, &best[count - 1]) {
            continue;
        }
        let place = best.iter().position(|other| precedes(&candidate, other)).unwrap_or(best.len());
        best.insert(place, candidate);
        best.truncate(count);
    }
    best
}

fn best_many<const SIZE: usize, T: Ranked>(
    elements: &[[u8; SIZE]],
    count: usize,
    read: &impl Fn([u8; SIZE]) -> T,
) -> Vec<(T, usize)> {
    let mut all: Vec<(T, usize)> =
        elements.iter().enumerate().map(|(index, element)| (read(*element), index)).collect();
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    all.sort_unstable_by(order);
    all
}

fn precedes<T: Ranked>(left: &(T, usize), right: &(T, usize)) -> bool {
    order(left, right) == Ordering::Less
}

fn order<T: Ranked>(left: &(T, usize), right: &(T, usize)) -> Ordering {
    let by_value = right.0.partial_cmp(&left.0);
    by_value
        .unwrap_or_else(|| left.0.is_unordered().cmp(&right.0.is_unordered()))
        .then_with(|| left.1.cmp(&right.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(tensor: &Tensor) -> Vec<String> {
        let text = |string: Option<&[u8]>| String::from_utf8(string.unwrap().to_vec()).unwrap();
        tensor.strings().map(text).collect()
    }

    fn floats(shape: &[usize], values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { datatype: DataType::Fp32, shape: Shape::from_slice(shape), data: data.into() }
    }

    #[test]
    fn the_recorded_answer() {
        let best = classify(&floats(&[1, 4], &[2.0, 3.0, 4.0, 5.0]), 2, &[]).unwrap();
        assert_eq!((best.datatype, &best.shape[..]), (DataType::Bytes, &[1, 2][..]));
        assert_eq!(strings(&best), ["5.000000:3", "4.000000:2"]);
    }

    #[test]
    fn every_row_is_ranked_along_the_last_dimension() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let best = classify(&floats(&[1, 2, 3], &[0.5, 9.0, 1.0, -1.0, -2.0, 7.25]), 1, &labels).unwrap();
        assert_eq!(&best.shape[..], [1, 2, 1]);
        assert_eq!(strings(&best), ["9.000000:1:b", "7.250000:2"]);
        let bytes = Tensor {
            datatype: DataType::Int8,
            shape: Shape::from_slice(&[3]),
            data: Bytes::from_static(&[0xff, 3, 3]),
        };
        assert_eq!(strings(&classify(&bytes, 9, &[]).unwrap()), ["3:1", "3:2", "-1:0"]);
    }

    #[test]
    fn the_three_ways_of_ranking_agree() {
        let mut random = 1_u32;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = random >> 24;
            // Few distinct values, so that many are equal; some are not numbers.
            if value < 16 { f32::NAN } else { f32::from(u8::try_from(value).unwrap() % 40) - 20.0 }
        };
        let values: Vec<f32> = (0..200).map(|_| next()).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (elements, _) = bytes.as_chunks::<4>();
        let show = |best: Vec<(f32, usize)>| {
            best.iter().map(|(value, index)| format!("{value}:{index}")).collect::<Vec<_>>()
        };
        let all = show(best_many(elements, values.len(), &f32::from_le_bytes));
        assert_eq!(show(best_one(elements, &f32::from_le_bytes)), all[..1]);
        assert_eq!(show(best_few(elements, 31, &f32::from_le_bytes)), all[..31]);
        assert_eq!(show(best_many(elements, 31, &f32::from_le_bytes)), all[..31]);
    }

    #[test]
    fn degenerate_tensors_do_not_panic() {
        for shape in [&[][..], &[0], &[2, 0], &[0, 3]] {
            let elements = shape.iter().product::<usize>();
            let best = classify(&floats(shape, &vec![1.0; elements]), 3, &[]).unwrap();
            assert_eq!(strings(&best).len(), best.elements(), "{shape:?}");
        }
        assert!(classify(&floats(&[3], &[1.0]), 1, &[]).is_err());
    }
}

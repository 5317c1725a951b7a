//! Answers as a person reads them.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use crate::client::NamedTensor;

/// Values of an output that are printed.
const VALUES_MAX: usize = 8;

/// The classes that the server found best, one a line: probability and label.
pub(crate) fn top_classes(output: &NamedTensor) -> Result<String> {
    let mut text = String::new();
    for element in elements(&output.data) {
        let element = std::str::from_utf8(element).context("a class is not text")?;
        let mut parts = element.splitn(3, ':');
        let (score, index, label) = (parts.next(), parts.next(), parts.next());
        let score: f32 = score.and_then(|score| score.parse().ok()).context("a class has no score")?;
        let name = label.or(index).context("a class has no name")?;
        writeln!(text, "{:>6.2} %  {name}", score * 100.0)?;
    }
    Ok(text.trim_end().to_owned())
}

/// The elements of a `BYTES` tensor, as far as they are whole.
fn elements(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first_chunk::<4>()?;
        let (element, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        data = rest;
        Some(element)
    })
}

/// The cosine of the angle between the first row and each other row; 1 is the same direction.
pub(crate) fn similarity(output: &NamedTensor) -> Result<String> {
    let [rows, width] = output.shape[..] else { anyhow::bail!("not one vector for each text") };
    ensure!(rows >= 2, "similarity takes at least two texts");
    let values = floats(output)?;
    let row = |index: usize| &values[index * width..(index + 1) * width];
    let norm = |row: &[f32]| row.iter().map(|value| value * value).sum::<f32>().sqrt();
    let mut text = String::new();
    for other in 1..rows {
        let dot: f32 = row(0).iter().zip(row(other)).map(|(a, b)| a * b).sum();
        let cosine = dot / (norm(row(0)) * norm(row(other)));
        writeln!(text, "similarity of text 1 and text {}: {cosine:.3}", other + 1)?;
    }
    Ok(text.trim_end().to_owned())
}

/// The text of the best path: the best class of each step, repetitions merged, blanks left out (Graves et
/// al., ICML 2006, section 3.2). Class k is line k of `keys`, counted from 0, where line 0 stands for the
/// blank; a class past the last line is a space.
pub(crate) fn ctc_text(output: &NamedTensor, keys: &str) -> Result<String> {
    let [1, steps, classes] = output.shape[..] else { anyhow::bail!("not one row of steps of classes") };
    let values = floats(output)?;
    ensure!(values.len() == steps * classes && classes > 0, "the answer is not of the size it says");
    let keys: Vec<&str> = keys.lines().collect();
    let mut text = String::new();
    let mut previous = 0;
    for step in values.chunks_exact(classes) {
        let best = step.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class);
        if best != 0 && best != previous {
            text.push_str(keys.get(best).copied().unwrap_or(" "));
        }
        previous = best;
    }
    Ok(text)
}

/// Name, type, shape and first values of every output.
pub(crate) fn raw(outputs: &[NamedTensor]) -> String {
    let mut text = String::new();
    for output in outputs {
        let NamedTensor { name, datatype, shape, .. } = output;
        text.push_str(&format!("{name}: {datatype} {shape:?}"));
        if let Ok(values) = floats(output) {
            let shown: Vec<String> = values.iter().take(VALUES_MAX).map(ToString::to_string).collect();
            let more = if values.len() > VALUES_MAX { ", …" } else { "" };
            text.push_str(&format!(" [{}{more}]", shown.join(", ")));
        }
        text.push('\n');
    }
    text.trim_end().to_owned()
}

fn floats(output: &NamedTensor) -> Result<Vec<f32>> {
    ensure!(output.datatype == "FP32", "output `{}` is `{}`, not `FP32`", output.name, output.datatype);
    let numbers =
        output.data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four")));
    let numbers: Vec<f32> = numbers.collect();
    ensure!(numbers.len() == output.shape.iter().product::<usize>(), "output `{}` is cut short", output.name);
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[f32]) -> NamedTensor {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        NamedTensor { name: "o".to_owned(), datatype: "FP32".to_owned(), shape: shape.to_vec(), data }
    }

    #[test]
    fn repeated_classes_merge_unless_a_blank_parts_them() {
        let best = [1, 1, 0, 1, 2, 3];
        let values: Vec<f32> = best.iter().flat_map(|b| (0..4).map(move |c| f32::from(c == *b))).collect();
        assert_eq!(ctc_text(&tensor(&[1, 6, 4], &values), "blank\na\nb\n").unwrap(), "aab ");
    }

    #[test]
    fn similarity_is_the_cosine() {
        let output = tensor(&[3, 2], &[1.0, 0.0, 2.0, 0.0, 0.0, 5.0]);
        let expect = "similarity of text 1 and text 2: 1.000\nsimilarity of text 1 and text 3: 0.000";
        assert_eq!(similarity(&output).unwrap(), expect);
    }

    #[test]
    fn classes_are_shown_with_their_labels() {
        let element =
            |text: &str| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
        let mut output = tensor(&[1, 2], &[]);
        output.data = [element("0.900000:3:rust"), element("0.100000:7")].concat();
        assert_eq!(top_classes(&output).unwrap(), " 90.00 %  rust\n 10.00 %  7");
    }
}

//! What files become: a picture, texts, or the bytes of a file, as the model takes them.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use image::imageops::FilterType;

use crate::client::{Metadata, NamedTensor, TensorMetadata};

/// Tokens of one text; longer ones are cut, as the models were trained.
const TOKENS_MAX: usize = 256;
/// Pictures of a free size are brought to a multiple of this, which convolutional networks want.
const SIZE_STEP: usize = 32;
/// The widest or highest picture that is sent.
const SIZE_MAX: usize = 4_096;
/// What stands for "no byte here" in a file classifier.
const PADDING: i32 = 256;
/// A file classifier looks at no more than this at either end.
const ENDS: usize = 4_096;

/// Order of a picture's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Channels {
    /// Red first, as most networks want it.
    Rgb,
    /// Blue first, as networks trained with OpenCV do.
    Bgr,
}

/// A picture for the model's input of the form `[batch, 3, height, width]`: scaled to -1..1, and to the
/// size that the model fixes. A free width follows from the picture's proportions.
pub(crate) fn picture(metadata: &Metadata, path: &Path, channels: Channels) -> Result<NamedTensor> {
    let input = only_input(metadata, "a picture", |input| input.shape.len() == 4 && input.shape[1] == 3)?;
    ensure!(input.datatype == "FP32", "input `{}` is `{}`, not `FP32`", input.name, input.datatype);
    let picture =
        image::open(path).with_context(|| format!("cannot read the picture `{}`", path.display()))?;
    Ok(picture_tensor(input, &picture, channels))
}

/// See [`picture`].
fn picture_tensor(input: &TensorMetadata, picture: &image::DynamicImage, channels: Channels) -> NamedTensor {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let fixed = |dim: i64| usize::try_from(dim).ok().filter(|size| *size > 0);
    let stepped = |size: usize| size.div_ceil(SIZE_STEP).clamp(1, SIZE_MAX / SIZE_STEP) * SIZE_STEP;
    let (to_height, to_width) = match (fixed(input.shape[2]), fixed(input.shape[3])) {
        (Some(to_height), Some(to_width)) => (to_height, to_width),
        (Some(to_height), None) => (to_height, stepped(width * to_height / height.max(1))),
        (None, Some(to_width)) => (stepped(height * to_width / width.max(1)), to_width),
        (None, None) => (stepped(height), stepped(width)),
    };
    let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
    let resized = picture.resize_exact(size(to_width), size(to_height), FilterType::Triangle).to_rgb8();
    let order = match channels {
        Channels::Rgb => [0, 1, 2],
        Channels::Bgr => [2, 1, 0],
    };
    let mut data = Vec::with_capacity(3 * to_height * to_width * size_of::<f32>());
    for channel in order {
        for pixel in resized.pixels() {
            let value = (f32::from(pixel.0[channel]) / 255.0 - 0.5) / 0.5;
            data.extend_from_slice(&value.to_le_bytes());
        }
    }
    let shape = vec![1, 3, to_height, to_width];
    NamedTensor { name: input.name.clone(), datatype: "FP32".to_owned(), shape, data }
}

/// Token ids, attention mask and, where the model wants them, token types; all texts padded to the longest.
pub(crate) fn texts(metadata: &Metadata, tokenizer: &Path, texts: &[String]) -> Result<Vec<NamedTensor>> {
    let said = |error: tokenizers::Error| anyhow!("tokenizer `{}`: {error}", tokenizer.display());
    let mut tokenizer = tokenizers::Tokenizer::from_file(tokenizer).map_err(said)?;
    let truncation = tokenizers::TruncationParams { max_length: TOKENS_MAX, ..Default::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| anyhow!("{error}"))?;
    tokenizer.with_padding(Some(tokenizers::PaddingParams::default()));
    let encodings = tokenizer.encode_batch(texts.to_vec(), true).map_err(|error| anyhow!("{error}"))?;
    let length = encodings.first().map_or(0, tokenizers::Encoding::len);
    let tensor = |input: &TensorMetadata| {
        ensure!(input.datatype == "INT64", "input `{}` is `{}`, not token ids", input.name, input.datatype);
        let of = |encoding: &tokenizers::Encoding| -> Result<Vec<u32>> {
            match input.name.as_str() {
                "input_ids" => Ok(encoding.get_ids().to_vec()),
                "attention_mask" => Ok(encoding.get_attention_mask().to_vec()),
                "token_type_ids" => Ok(encoding.get_type_ids().to_vec()),
                name => bail!("the model wants input `{name}`, which no text becomes; use `--npy`"),
            }
        };
        let mut data = Vec::new();
        for encoding in &encodings {
            for id in of(encoding)? {
                data.extend_from_slice(&i64::from(id).to_le_bytes());
            }
        }
        let shape = vec![texts.len(), length];
        Ok(NamedTensor { name: input.name.clone(), datatype: "INT64".to_owned(), shape, data })
    };
    metadata.inputs.iter().map(tensor).collect()
}

/// The bytes of a file: as one element for `BYTES`, as they are for `UINT8`, and for `INT32` of a fixed
/// length as file classifiers such as Magika want them: the beginning and the end of the file without
/// surrounding white space, each padded to half of that length.
pub(crate) fn file_bytes(metadata: &Metadata, path: &Path) -> Result<NamedTensor> {
    let input = only_input(metadata, "bytes", |_| true)?;
    let content = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let (shape, data) = match (input.datatype.as_str(), input.shape.last()) {
        ("BYTES", _) => {
            let length = u32::try_from(content.len()).context("the file is larger than 4 GiB")?;
            (vec![1; input.shape.len()], [&length.to_le_bytes()[..], &content].concat())
        }
        ("UINT8", _) => {
            let mut shape = vec![1; input.shape.len().max(1)];
            *shape.last_mut().expect("at least one dimension") = content.len();
            (shape, content)
        }
        ("INT32", Some(length)) if *length > 0 && length % 2 == 0 => {
            let length = usize::try_from(*length)?;
            let features = ends_of_file(&content, length / 2);
            (vec![1, length], features.iter().flat_map(|feature| feature.to_le_bytes()).collect())
        }
        (datatype, _) => bail!("input `{}` is `{datatype}`: a file's bytes do not fit", input.name),
    };
    Ok(NamedTensor { name: input.name.clone(), datatype: input.datatype.clone(), shape, data })
}

/// `half` numbers from the beginning, padded at their end, and `half` from the end, padded at their front.
fn ends_of_file(content: &[u8], half: usize) -> Vec<i32> {
    let front = &content[..content.len().min(ENDS)];
    let back = &content[content.len().saturating_sub(ENDS)..];
    let (front, back) = if content.len() <= ENDS {
        (front.trim_ascii(), back.trim_ascii())
    } else {
        (front.trim_ascii_start(), back.trim_ascii_end())
    };
    let front = &front[..front.len().min(half)];
    let back = &back[back.len().saturating_sub(half)..];
    let padding = |length: usize| std::iter::repeat_n(PADDING, half - length);
    let numbers = |bytes: &[u8]| bytes.iter().map(|byte| i32::from(*byte)).collect::<Vec<_>>();
    let front = numbers(front).into_iter().chain(padding(front.len()));
    front.chain(padding(back.len())).chain(numbers(back)).collect()
}

fn only_input<'a>(
    metadata: &'a Metadata,
    what: &str,
    fits: impl Fn(&TensorMetadata) -> bool,
) -> Result<&'a TensorMetadata> {
    match &metadata.inputs[..] {
        [input] if fits(input) => Ok(input),
        [input] => bail!("input `{}` of shape {:?} does not take {what}", input.name, input.shape),
        inputs => bail!("the model takes `{}` inputs, not only {what}; use `--npy`", inputs.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_file_are_padded_towards_the_middle() {
        let padded = |content: &[u8]| ends_of_file(content, 4);
        assert_eq!(padded(b"  ab\n"), [97, 98, 256, 256, 256, 256, 97, 98]);
        assert_eq!(padded(b"abcdef"), [97, 98, 99, 100, 99, 100, 101, 102]);
        assert_eq!(padded(b""), [256; 8]);
    }

    #[test]
    fn a_picture_keeps_its_proportions_where_the_width_is_free() {
        let input = |shape: [i64; 4]| TensorMetadata {
            name: "x".to_owned(),
            datatype: "FP32".to_owned(),
            shape: shape.to_vec(),
        };
        let picture = image::DynamicImage::new_rgb8(200, 50);
        for (shape, expect) in [
            ([-1, 3, 48, -1], [1, 3, 48, 192]),
            ([-1, 3, 48, 320], [1, 3, 48, 320]),
            ([-1, 3, -1, -1], [1, 3, 64, 224]),
        ] {
            let tensor = picture_tensor(&input(shape), &picture, Channels::Bgr);
            assert_eq!(tensor.shape, expect);
            assert_eq!(tensor.data.len(), expect.iter().product::<usize>() * 4);
        }
    }
}

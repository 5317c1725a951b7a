//! Tensors from NumPy's `.npy` files, format versions 1 to 3.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::client::{Metadata, NamedTensor};

/// The tensors of `[INPUT=]FILE` arguments, checked against what the model takes.
pub(crate) fn tensors(metadata: &Metadata, arguments: &[String]) -> Result<Vec<NamedTensor>> {
    let mut tensors = Vec::new();
    for (index, argument) in arguments.iter().enumerate() {
        let (name, file) = match argument.split_once('=') {
            Some((name, file)) => (name.to_owned(), file),
            None => {
                let input = metadata
                    .inputs
                    .get(index)
                    .with_context(|| format!("the model takes only `{}` inputs", metadata.inputs.len()))?;
                (input.name.clone(), argument.as_str())
            }
        };
        let bytes = std::fs::read(Path::new(file)).with_context(|| format!("cannot read `{file}`"))?;
        let (datatype, shape, data) = parse(&bytes).with_context(|| format!("in `{file}`"))?;
        tensors.push(NamedTensor { name, datatype: datatype.to_owned(), shape, data: data.to_vec() });
    }
    Ok(tensors)
}

/// Data type, shape and elements.
fn parse(bytes: &[u8]) -> Result<(&'static str, Vec<usize>, &[u8])> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").context("not a `.npy` file")?;
    let [major, _minor, rest @ ..] = rest else { bail!("the file is cut short") };
    let (length, rest) = if *major == 1 {
        let (length, rest) = rest.split_first_chunk::<2>().context("the file is cut short")?;
        (usize::from(u16::from_le_bytes(*length)), rest)
    } else {
        let (length, rest) = rest.split_first_chunk::<4>().context("the file is cut short")?;
        (u32::from_le_bytes(*length) as usize, rest)
    };
    let (header, data) = rest.split_at_checked(length).context("the file is cut short")?;
    let header = std::str::from_utf8(header).context("the header is not text")?;
    let datatype = datatype(after(header, "'descr':")?)?;
    ensure!(after(header, "'fortran_order':")?.starts_with("False"), "column-major arrays are not taken");
    let shape = after(header, "'shape':")?.strip_prefix('(').context("the header has no shape")?;
    let shape = shape.split(')').next().unwrap_or_default();
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape =
        sizes.map(|size| size.parse().context("a size is not a number")).collect::<Result<Vec<usize>>>()?;
    Ok((datatype, shape, data))
}

fn after<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let (_, value) = header.split_once(key).with_context(|| format!("the header has no {key}"))?;
    Ok(value.trim_start())
}

fn datatype(descr: &str) -> Result<&'static str> {
    let name = descr.trim_start_matches('\'').split('\'').next().unwrap_or_default();
    Ok(match name {
        "|b1" => "BOOL",
        "|u1" => "UINT8",
        "<u2" => "UINT16",
        "<u4" => "UINT32",
        "<u8" => "UINT64",
        "|i1" => "INT8",
        "<i2" => "INT16",
        "<i4" => "INT32",
        "<i8" => "INT64",
        "<f2" => "FP16",
        "<f4" => "FP32",
        "<f8" => "FP64",
        other => bail!("arrays of `{other}` are not taken"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn numpys_header_is_understood() {
        let file = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }", &[0; 8]);
        assert_eq!(parse(&file).unwrap(), ("FP32", vec![1, 2], &[0; 8][..]));
        let scalar = npy("{'descr': '<i8', 'fortran_order': False, 'shape': (), }", &[0; 8]);
        assert_eq!(parse(&scalar).unwrap().1, Vec::<usize>::new());
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (file, part) in [
            (b"GIF89a".to_vec(), "not a `.npy` file"),
            (b"\x93NUMPY\x01\x00\xff\xff".to_vec(), "cut short"),
            (npy("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", &[]), "`<c8`"),
            (npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }", &[]), "column-major"),
            (npy("{}", &[]), "'descr'"),
        ] {
            assert!(parse(&file).unwrap_err().to_string().contains(part));
        }
    }
}

//! The compact way to name a model and its inputs on a command line:
//! `NAME[*WEIGHT][:INPUT=TYPE[DIMS]=FILL,…][@OUTPUT=CLASSES][~OBJECTIVE_MS]`.

use crate::payload::{Fill, TensorSpec};
use crate::plan::ModelLoad;

/// Reads such a text.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn parse_model(text: &str) -> Result<ModelLoad, String> {
    let (text, objective) = match text.rsplit_once('~') {
        None => (text, None),
        Some((before, written)) => {
            let number = written.parse::<f64>().ok().filter(|number| (0.0..1e9).contains(number));
            let number = number.ok_or_else(|| format!("`{written}` is not an objective in milliseconds"))?;
            (before, Some(std::time::Duration::from_secs_f64(number / 1e3)))
        }
    };
    let (text, classification) = match text.rsplit_once('@') {
        None => (text, None),
        Some((before, wanted)) => {
            let (output, classes) = wanted.split_once('=').ok_or("after `@` comes `OUTPUT=CLASSES`")?;
            let classes = classes.parse().map_err(|_| format!("`{classes}` is not a number of classes"))?;
            (before, Some((output.to_owned(), classes)))
        }
    };
    let (name, inputs) = text.split_once(':').map_or((text, None), |(name, inputs)| (name, Some(inputs)));
    let (name, weight) = match name.split_once('*') {
        None => (name, 1.0),
        Some((name, weight)) => {
            let number = weight.parse::<f64>().ok().filter(|weight| weight.is_finite() && *weight > 0.0);
            (name, number.ok_or_else(|| format!("weight `{weight}` is not a number above 0"))?)
        }
    };
    if name.is_empty() {
        return Err("a model needs a name".to_owned());
    }
    let inputs = inputs.map_or(Ok(Vec::new()), |inputs| split_inputs(inputs).map(parse_input).collect())?;
    Ok(ModelLoad { name: name.to_owned(), weight, inputs, classification, objective })
}

/// Splits at commas outside of brackets.
fn split_inputs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut depth = 0_usize;
        let end = text.find(|character| {
            depth = match character {
                '[' => depth + 1,
                ']' => depth.saturating_sub(1),
                _ => depth,
            };
            character == ',' && depth == 0
        });
        rest = end.map(|end| &text[end + 1..]);
        Some(end.map_or(text, |end| &text[..end]))
    })
}

fn parse_input(text: &str) -> Result<TensorSpec, String> {
    let form = || format!("`{text}` is not `INPUT=TYPE[DIMS]` or `INPUT=TYPE[DIMS]=FILL`");
    let (name, rest) = text.split_once('=').ok_or_else(form)?;
    let (shaped, fill) = rest.split_once('=').map_or((rest, "random"), |(shaped, fill)| (shaped, fill));
    let (datatype, dims) =
        shaped.strip_suffix(']').and_then(|shaped| shaped.split_once('[')).ok_or_else(form)?;
    let size =
        |dim: &str| dim.trim().parse::<usize>().map_err(|_| format!("`{dim}` in `{text}` is not a size"));
    let dims = dims.split(',').filter(|dim| !dim.trim().is_empty()).map(size).collect::<Result<_, _>>()?;
    let fill = match fill {
        "random" => Fill::Random,
        "zeros" => Fill::Zeros,
        "ones" => Fill::Ones,
        other => return Err(format!("fill `{other}` in `{text}` is not `random`, `zeros` or `ones`")),
    };
    TensorSpec::new(name, datatype, dims, fill)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_optional_but_the_name() {
        let plain = parse_model("magika").unwrap();
        assert_eq!((plain.name.as_str(), plain.weight, plain.inputs.len()), ("magika", 1.0, 0));
        let full = parse_model("m*2.5:ids=INT64[1,16]=ones,x=FP32[2]@scores=3~12.5").unwrap();
        assert_eq!((full.name.as_str(), full.weight), ("m", 2.5));
        assert_eq!(full.classification, Some(("scores".to_owned(), 3)));
        assert_eq!(full.objective, Some(std::time::Duration::from_micros(12_500)));
        assert_eq!(full.inputs[0], TensorSpec::new("ids", "INT64", vec![1, 16], Fill::Ones).unwrap());
        assert_eq!(full.inputs[1], TensorSpec::new("x", "FP32", vec![2], Fill::Random).unwrap());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("", "needs a name"),
            ("m*0", "weight `0`"),
            ("m:x", "`x` is not `INPUT=TYPE[DIMS]`"),
            ("m:x=FP33[1]", "`FP33`"),
            ("m:x=FP32[1,a]", "`a`"),
            ("m:x=FP32[1]=twos", "fill `twos`"),
            ("m@x", "OUTPUT=CLASSES"),
            ("m~soon", "`soon` is not an objective"),
        ] {
            let error = parse_model(text).unwrap_err();
            assert!(error.contains(part), "`{text}` gave `{error}`");
        }
    }
}

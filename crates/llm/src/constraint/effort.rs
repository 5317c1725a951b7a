//! How much work a JSON schema is, estimated before it is done.
//!
//! `llguidance` writes combinations out: what stands beside `anyOf` is copied into each alternative, `allOf`
//! of alternatives becomes their product, and a definition that is combined with something is copied to
//! where that happens. It counts the steps of this but not what a step copies, so that a few kilobytes of
//! schema can ask for gigabytes. Here the same is gone through in numbers only, each of them an upper bound;
//! how definitions are combined that contain themselves is not followed but refused.

use std::collections::BTreeMap;

use serde_json::Value;

/// Units of work, each some hundred bytes and nanoseconds.
const UNITS_MAX: u64 = 250_000;
/// Bytes of a regular expression: the work for one may grow with their square.
pub(super) const EXPRESSION_BYTES_MAX: usize = 1 << 12;
/// Bytes of all regular expressions of a schema.
const EXPRESSIONS_BYTES_MAX: usize = 1 << 13;
/// Names that are regular expressions: each two of them are compared.
const PATTERNS_MAX: usize = 16;
/// `multipleOf` is computed with in 32 bits.
const MULTIPLES: std::ops::RangeInclusive<f64> = 1e-6..=1e6;
/// Numbers below cannot be negated in 64 bits.
const NUMBER_MIN: f64 = -9.2e18;

/// Keywords that say nothing of a value; all others do, also those that nobody knows.
const ANNOTATIONS: [&str; 15] = [
    "$anchor",
    "$defs",
    "definitions",
    "$schema",
    "$id",
    "id",
    "$comment",
    "title",
    "description",
    "default",
    "readOnly",
    "writeOnly",
    "examples",
    "contentMediaType",
    "contentEncoding",
];

/// Whether a schema can be compiled in a fraction of a second.
///
/// # Errors
/// What of it is too much.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut expressions = Vec::new();
    plain(schema, &mut expressions)?;
    let longest = expressions.iter().copied().max().unwrap_or(0);
    let bytes: usize = expressions.iter().sum();
    if longest > EXPRESSION_BYTES_MAX || bytes > EXPRESSIONS_BYTES_MAX {
        return Err(format!(
            "the regular expressions in the schema have `{bytes}` bytes, the longest `{longest}`; at most \
             `{EXPRESSIONS_BYTES_MAX}` and `{EXPRESSION_BYTES_MAX}` are allowed"
        ));
    }
    let mut estimate = Estimate { root: schema, definitions: BTreeMap::new(), units: 0 };
    let whole = estimate.schema(schema)?;
    estimate.spend(whole.here.units)
}

/// Checks what does not depend on how things are combined, and collects the lengths of expressions.
fn plain(value: &Value, expressions: &mut Vec<usize>) -> Result<(), String> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| plain(item, expressions)),
        Value::Number(number) if number.as_f64().is_some_and(|number| number < NUMBER_MIN) => {
            Err(format!("the schema has a number `{number}`, which is too low"))
        }
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            match (name.as_str(), value) {
                ("pattern", Value::String(expression)) => expressions.push(expression.len()),
                ("patternProperties", Value::Object(patterns)) if patterns.len() > PATTERNS_MAX => {
                    let count = patterns.len();
                    return Err(format!("`{count}` `patternProperties`, more than `{PATTERNS_MAX}`"));
                }
                ("patternProperties", Value::Object(patterns)) => {
                    expressions.extend(patterns.keys().map(String::len));
                }
                ("multipleOf", Value::Number(number))
                    if number.as_f64().is_none_or(|number| !MULTIPLES.contains(&number.abs())) =>
                {
                    return Err(format!("`multipleOf` `{number}`, which is not from 1e-6 to 1e6"));
                }
                _ => {}
            }
            plain(value, expressions)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// How large a schema is.
#[derive(Clone, Copy, Default)]
struct Size {
    units: u64,
    /// How often what it is combined with is copied, at most.
    alternatives: u64,
    /// Properties and items that have a place of their own.
    names: u64,
    /// Units of what is copied to every such place of what it is combined with.
    spread: u64,
}

/// The sizes of a schema as it stands, and with all that it refers to.
#[derive(Clone, Copy, Default)]
struct Sizes {
    here: Size,
    whole: Size,
    /// Whether it refers to itself, so that the whole has no end.
    recursive: bool,
}

struct Estimate<'a> {
    root: &'a Value,
    /// Those that were referred to; `None` while one is being looked at.
    definitions: BTreeMap<&'a str, Option<Sizes>>,
    /// Work so far.
    units: u64,
}

impl Size {
    fn of_units(units: u64) -> Self {
        Self { units, alternatives: 1, names: 0, spread: 0 }
    }

    /// Of both beside each other, as alternatives are.
    fn plus(self, other: Self) -> Self {
        Self {
            units: self.units.saturating_add(other.units),
            alternatives: self.alternatives.saturating_add(other.alternatives),
            names: self.names.saturating_add(other.names),
            spread: self.spread.saturating_add(other.spread),
        }
    }

    /// Of a part of an object or array: its alternatives are at another place than those of other parts.
    fn with_part(self, part: Self) -> Self {
        Self { alternatives: self.alternatives.max(part.alternatives), ..self.plus(part) }
    }

    /// Of what fits both.
    fn times(self, other: Self) -> Self {
        let copied = |one: Self, other: Self| {
            let spread = one.spread.saturating_mul(other.names);
            let copies = |units: u64| units.saturating_mul(other.alternatives);
            Self {
                units: copies(one.units.saturating_add(spread)),
                alternatives: 0,
                names: copies(one.names),
                spread: copies(one.spread),
            }
        };
        let alternatives = self.alternatives.saturating_mul(other.alternatives);
        Self { alternatives, ..copied(self, other).plus(copied(other, self)) }
    }
}

impl Sizes {
    fn of_units(units: u64) -> Self {
        Self { here: Size::of_units(units), whole: Size::of_units(units), recursive: false }
    }

    fn both(self, other: Self, join: fn(Size, Size) -> Size) -> Self {
        Self {
            here: join(self.here, other.here),
            whole: join(self.whole, other.whole),
            recursive: self.recursive || other.recursive,
        }
    }
}

impl<'a> Estimate<'a> {
    fn schema(&mut self, schema: &'a Value) -> Result<Sizes, String> {
        let Value::Object(members) = schema else { return Ok(Sizes::of_units(1)) };
        let mut parts = Vec::new();
        let mut plain = Sizes::of_units(1);
        let mut is_plain = false;
        for (name, value) in members {
            match (name.as_str(), value) {
                ("$ref", Value::String(reference)) => parts.push(self.definition(reference)?),
                ("allOf", Value::Array(all)) => {
                    for schema in all {
                        parts.push(self.schema(schema)?);
                    }
                }
                ("anyOf" | "oneOf", Value::Array(options)) => {
                    let mut sum = Sizes::default();
                    for option in options {
                        sum = sum.both(self.schema(option)?, Size::plus);
                    }
                    // Whether the alternatives of `oneOf` exclude each other is looked at in pairs.
                    self.spend((options.len() as u64).pow(2) / 16)?;
                    parts.push(sum);
                }
                ("enum", Value::Array(values)) => {
                    let mut size = Size::of_units(units(value));
                    (size.alternatives, size.names) = (values.len() as u64, size.units);
                    parts.push(Sizes { here: size, whole: size, recursive: false });
                }
                ("const", _) => parts.push(Sizes::of_units(units(value))),
                _ if ANNOTATIONS.contains(&name.as_str()) => {}
                _ => {
                    is_plain = true;
                    plain = plain.both(self.keyword(name, value)?, Size::with_part);
                }
            }
        }
        if is_plain {
            // Without a type it is one of six, of which one at most has parts.
            let (times, least) = match members.get("type") {
                None => (1, 6),
                Some(types) => (types.as_array().map_or(1, Vec::len) as u64, 1),
            };
            for size in [&mut plain.here, &mut plain.whole] {
                size.alternatives = size.alternatives.saturating_mul(times).max(least);
            }
            parts.push(plain);
        }
        let mut parts = parts.into_iter();
        let first = parts.next().unwrap_or_else(|| Sizes::of_units(1));
        parts.try_fold(first, |all, part| self.combined(all, part))
    }

    /// What one of the keywords says that hold beside each other.
    fn keyword(&mut self, name: &str, value: &'a Value) -> Result<Sizes, String> {
        let schemas: Vec<&Value> = match (name, value) {
            ("properties" | "patternProperties", Value::Object(members)) => members.values().collect(),
            ("prefixItems" | "items", Value::Array(items)) => items.iter().collect(),
            ("items" | "additionalItems" | "additionalProperties", Value::Object(_)) => vec![value],
            _ => return Ok(Sizes::of_units(units(value))),
        };
        let count = schemas.len() as u64;
        // Patterns are compared with each other, and lists of properties with their own ends.
        let weight = if name == "patternProperties" { 64 * count * count } else { count * count / 64 };
        let mut sum = Sizes::of_units(weight + 1);
        for schema in schemas {
            let mut part = self.schema(schema)?;
            if schema.get("$ref").is_some() && schema.as_object().is_some_and(|members| members.len() == 1) {
                part.here = Size::of_units(1);
            }
            sum = sum.both(part, Size::with_part);
        }
        for size in [&mut sum.here, &mut sum.whole] {
            match name {
                "properties" | "prefixItems" => size.names = size.names.saturating_add(count),
                _ => size.spread = size.units,
            }
        }
        Ok(sum)
    }

    /// What a reference stands for; nothing if it stands for nothing, which will be said when it is compiled.
    fn definition(&mut self, reference: &'a str) -> Result<Sizes, String> {
        match self.definitions.get(reference) {
            Some(Some(sizes)) => return Ok(*sizes),
            Some(None) => return Ok(Sizes { recursive: true, ..Sizes::of_units(1) }),
            None => {}
        }
        let Some(schema) = found(self.root, reference) else { return Ok(Sizes::of_units(1)) };
        self.definitions.insert(reference, None);
        let sizes = self.schema(schema)?;
        self.definitions.insert(reference, Some(sizes));
        self.spend(sizes.here.units)?;
        Ok(sizes)
    }

    fn combined(&mut self, one: Sizes, other: Sizes) -> Result<Sizes, String> {
        let is_deep = one.here.names + one.here.spread > 0 && other.here.names + other.here.spread > 0;
        if is_deep && (one.recursive || other.recursive) {
            return Err("the schema combines one that contains itself with another, by `allOf` or with \
                        keywords beside `anyOf`, `oneOf` or `$ref`; write out what is meant"
                .into());
        }
        // References within are only followed where both have something at the same place.
        let mut sizes = one.both(other, Size::times);
        if is_deep {
            sizes.here = sizes.whole;
        }
        self.spend(sizes.here.units)?;
        Ok(sizes)
    }

    fn spend(&mut self, units: u64) -> Result<(), String> {
        self.units = self.units.saturating_add(units);
        if self.units > UNITS_MAX {
            return Err("the schema is too much: it has too many properties or values, or too many \
                        combinations of `allOf`, `anyOf`, `oneOf` and what is beside them"
                .into());
        }
        Ok(())
    }
}

/// What the library finds at a reference, which is less than JSON pointers can say.
fn found<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    if reference == "#" || reference == "#/" {
        return Some(root);
    }
    reference.strip_prefix("#/")?.split('/').try_fold(root, |value, part| match value.as_array() {
        Some(items) => items.get(part.parse::<usize>().ok()?),
        None => value.get(part),
    })
}

/// How large a value is.
fn units(value: &Value) -> u64 {
    match value {
        Value::Array(items) => 1 + items.iter().map(units).sum::<u64>(),
        Value::Object(members) => 1 + members.values().map(|value| 1 + units(value)).sum::<u64>(),
        Value::String(text) => 1 + text.len() as u64 / 64,
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
    }
}

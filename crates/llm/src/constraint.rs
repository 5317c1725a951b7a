//! What a text must be: JSON of a schema, a match of a regular expression, one of some texts, a sentence of a
//! grammar.
//!
//! A constraint follows a sequence token by token and says which tokens may come next; the crate `llguidance`
//! knows how (Earley's parser over a lexer of regular expressions' derivatives, walked along the tree of the
//! vocabulary's tokens). What is asked for comes from strangers: its length, its nesting, the combinations in
//! it and the work for each token have limits, so that whatever it says it costs a fraction of a second.

use std::fmt;
use std::sync::Arc;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory, TokenParser, regex_to_lark};
use serde_json::Value;

use crate::Tokenizer;

mod effort;
mod terminals;

/// Bytes of a schema, a grammar, or all choices.
const GRAMMAR_BYTES_MAX: usize = 1 << 16;
/// Bytes of all tokens: their tree has room for so many nodes. Vocabularies of 256 000 tokens take half.
const VOCABULARY_BYTES_MAX: usize = 1 << 22;
/// Bytes of a token, as deep as the tree goes; spaces in a row are the longest.
const TOKEN_BYTES_MAX: usize = 1 << 10;
/// Characters of an error that are shown: it quotes what it is about.
const ERROR_CHARS_MAX: usize = 300;
/// Grammars are compiled by functions that call themselves for what is nested in them, some thousand deep.
const STACK_BYTES: usize = 1 << 28;
/// Limits of what is compiled and of each token: some ten milliseconds, and a hundred megabytes.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 50_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};
/// Whitespace between the parts of JSON: without an end a model that is unsure writes nothing else.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";
/// What the library says when it runs into a limit for which there is nothing to set here.
const TOO_MUCH_WORK: [&str; 4] =
    ["initial lexer configuration", "lexer precomputation failed", "fuel exhausted", "lexer error: too many"];
/// What is said where no token may come.
const NOTHING_FITS: &str = "no token fits what the text must be";

/// The vocabulary of a model, prepared for constraints: made once, and cheap to clone.
#[derive(Clone)]
pub struct ConstraintVocabulary {
    factory: Arc<ParserFactory>,
    /// Tokens that are no text.
    textless: Arc<[u32]>,
    /// The token that ends a text.
    end: u32,
}

/// What a text must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that fits a schema. Where several of `oneOf` fit, that is taken as well.
    JsonSchema(String),
    /// A match, from its beginning to its end, of a regular expression; `\d`, `\w` and `\s` are of ASCII.
    Regex(String),
    /// One of some texts.
    Choice(Vec<String>),
    /// A sentence of a grammar as `llguidance` writes them, which is nearly as the Python library Lark does.
    Lark(String),
}

/// What one sequence must be, and how far it is.
pub struct Constraint {
    matcher: Matcher,
    vocabulary: ConstraintVocabulary,
}

impl fmt::Debug for ConstraintVocabulary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ConstraintVocabulary").field("end", &self.end).finish_non_exhaustive()
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.matcher.stop_reason();
        formatter.debug_struct("Constraint").field("state", &state).finish_non_exhaustive()
    }
}

impl ConstraintVocabulary {
    /// The tokens of a model. Control tokens are no text, so none of them comes but the one that ends it.
    ///
    /// # Errors
    /// If no token ends a text, or the tokens are too many or too long.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let end = tokenizer.end().ok_or("the model has no token that ends a text")?;
        let ids = (0_u32..).take(tokenizer.token_count());
        let texts = ids.map(|id| tokenizer.text(id));
        Self::of_bytes(texts, end)
    }

    /// The bytes of tokens, in their order; those that have none never come but for `end`, which ends a text.
    ///
    /// # Errors
    /// If there is no token `end`, or the tokens are too many or too long.
    pub fn of_bytes<'a>(tokens: impl Iterator<Item = &'a [u8]>, end: u32) -> Result<Self, String> {
        // A byte 0xff is in no text, and marks something else in the library.
        let texts = tokens.map(|bytes| if bytes.contains(&0xff) { &[] } else { bytes });
        let mut texts: Vec<Vec<u8>> = texts.map(<[u8]>::to_vec).collect();
        let last = texts.get_mut(end as usize).ok_or_else(|| format!("there is no token `{end}`"))?;
        last.clear();
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let bytes: usize = texts.iter().map(Vec::len).sum();
        if texts.len().max(bytes) >= VOCABULARY_BYTES_MAX || longest >= TOKEN_BYTES_MAX {
            let count = texts.len();
            return Err(format!(
                "`{count}` tokens of `{bytes}` bytes, the longest of `{longest}`, are more than constraints \
                 can take"
            ));
        }
        let tree = TokTrie::from(&TokRxInfo::new(texts.len() as u32, end), &texts);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(tree));
        let slices = SlicedBiasComputer::json_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| shown(&error.to_string()))?;
        *factory.limits_mut() = LIMITS;
        factory.quiet();
        let textless = (0_u32..).zip(&texts).filter(|(id, text)| text.is_empty() && *id != end);
        Ok(Self { factory: Arc::new(factory), textless: textless.map(|(id, _)| id).collect(), end })
    }

    fn compile(&self, grammar: &Grammar) -> Result<TokenParser, String> {
        let written = GrammarInit::Serialized(written(grammar)?);
        let parser = self.factory.create_parser_from_init_default(written);
        parser.map_err(|error| shown(&error.to_string()))
    }
}

impl Constraint {
    /// A text that has not begun. This takes milliseconds, for the largest grammars some hundred.
    ///
    /// # Errors
    /// What is wrong with the grammar, what of it is not supported, that it is too much, or that nothing
    /// fits it.
    pub fn new(vocabulary: &ConstraintVocabulary, grammar: &Grammar) -> Result<Self, String> {
        let parser = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
            let compiling = thread.spawn_scoped(scope, || vocabulary.compile(grammar));
            let compiling = compiling.map_err(|error| format!("no thread for a grammar: {error}"))?;
            compiling.join().map_err(|_| "the grammar cannot be compiled".to_owned())?
        })?;
        let mut constraint = Self { matcher: Matcher::new(Ok(parser)), vocabulary: vocabulary.clone() };
        // What nothing fits is found out now rather than when a model is at work.
        constraint.allowed()?;
        Ok(constraint)
    }

    /// Makes the scores of tokens that may not come next infinitely low. The token that ends the text may
    /// come where it is complete.
    ///
    /// # Errors
    /// If it takes too much work to say what may come next, or nothing may.
    pub fn mask(&mut self, scores: &mut [f32]) -> Result<(), String> {
        let allowed = self.allowed()?;
        let (scores, beyond) = scores.split_at_mut(scores.len().min(allowed.len()));
        beyond.fill(f32::NEG_INFINITY);
        for (word, scores) in allowed.as_slice().iter().zip(scores.chunks_mut(u32::BITS as usize)) {
            if *word == u32::MAX {
                continue;
            }
            for (bit, score) in scores.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// Takes the next token in. Says whether the text is complete and nothing can follow.
    ///
    /// # Errors
    /// If it may not come here, or takes too much work; then this is of no more use.
    pub fn accept(&mut self, token: u32) -> Result<bool, String> {
        let is_over = self.matcher.is_stopped() && !self.matcher.is_error();
        if !(is_over && token == self.vocabulary.end) {
            self.matcher.consume_token(token).map_err(|error| failed(&error.to_string()))?;
        }
        Ok(self.matcher.is_stopped())
    }

    fn allowed(&mut self) -> Result<SimpleVob, String> {
        let mut allowed = self.matcher.compute_mask_or_eos().map_err(|error| failed(&error.to_string()))?;
        for token in &*self.vocabulary.textless {
            allowed.disallow_token(*token);
        }
        if allowed.is_zero() { Err(NOTHING_FITS.into()) } else { Ok(allowed) }
    }
}

/// A grammar as the library takes it.
fn written(grammar: &Grammar) -> Result<TopLevelGrammar, String> {
    let within = |what: &str, bytes: usize, bytes_max: usize| match bytes <= bytes_max {
        true => Ok(()),
        false => Err(format!("the {what} has `{bytes}` bytes, more than `{bytes_max}`")),
    };
    match grammar {
        Grammar::JsonObject => Ok(json(serde_json::json!({ "type": "object" }))),
        Grammar::JsonSchema(schema) => {
            within("JSON schema", schema.len(), GRAMMAR_BYTES_MAX)?;
            let schema: Value =
                serde_json::from_str(schema).map_err(|error| format!("the schema is not JSON: {error}"))?;
            if !schema.is_object() {
                return Err("a JSON schema must be an object".into());
            }
            effort::check(&schema)?;
            Ok(json(schema))
        }
        Grammar::Regex(expression) => {
            within("regular expression", expression.len(), effort::EXPRESSION_BYTES_MAX)?;
            if (expression.len() - expression.trim_end_matches('\\').len()) % 2 == 1 {
                return Err("a regular expression cannot end with a single `\\`".into());
            }
            // Classes such as `\d` are of ASCII, as they are in the patterns of schemas.
            let expression = regex_to_lark(expression, "dws");
            Ok(TopLevelGrammar::from_lark(format!("start: /{expression}/")))
        }
        Grammar::Choice(texts) if texts.is_empty() => Err("there is nothing to choose from".into()),
        Grammar::Choice(texts) => {
            // The bytes between the texts count too.
            within("choice", texts.iter().map(|text| text.len() + 1).sum(), GRAMMAR_BYTES_MAX)?;
            let quoted = texts.iter().map(|text| Value::from(text.as_str()).to_string());
            let choices = quoted.collect::<Vec<_>>().join(" | ").replace('\x7f', "\\u007f");
            Ok(TopLevelGrammar::from_lark(format!("start: CHOICE\nCHOICE: {choices}")))
        }
        Grammar::Lark(grammar) => {
            within("grammar", grammar.len(), GRAMMAR_BYTES_MAX)?;
            terminals::check(grammar)?;
            Ok(TopLevelGrammar::from_lark(grammar.clone()))
        }
    }
}

/// An object that is a schema, with what is to be done where schemas leave a choice.
fn json(mut schema: Value) -> TopLevelGrammar {
    let options = JsonCompileOptions {
        whitespace_pattern: Some(WHITESPACE.into()),
        coerce_one_of: true,
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    TopLevelGrammar::from_json_schema(schema)
}

/// An error of a text that has begun.
fn failed(error: &str) -> String {
    match error.starts_with("NoExtension") {
        true => NOTHING_FITS.into(),
        false => format!("what the text must be cannot be followed: {}", shown(error)),
    }
}

/// The first lines of an error of the library, which may go on about its inside.
fn shown(error: &str) -> String {
    let about = error.split("\n<").next().unwrap_or(error).trim();
    if TOO_MUCH_WORK.iter().any(|message| about.contains(message)) {
        return "its words and regular expressions take too much work together".into();
    }
    let about = about.replace("panic: ", "beyond what can be compiled: ");
    match about.char_indices().nth(ERROR_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &about[..end]),
        None => about,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{Sampler, Sampling};

    /// All bytes, some tokens of several, a control token, and the end.
    const LONGER: [&str; 12] =
        ["{\"", "\":", "\"}", "name", "yes", "no", "12", "ye", "\"a", ", ", "sno", "12-34"];
    const CONTROL: u32 = 256 + LONGER.len() as u32;
    const END: u32 = CONTROL + 1;

    fn vocabulary() -> ConstraintVocabulary {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        let longer = LONGER.iter().map(|text| text.as_bytes());
        ConstraintVocabulary::of_bytes(bytes.chunks(1).chain(longer).chain([&b""[..], b"<end>"]), END)
            .unwrap()
    }

    fn text(token: u32) -> Vec<u8> {
        match token {
            0..=255 => vec![token as u8],
            CONTROL | END => Vec::new(),
            token => LONGER[token as usize - 256].into(),
        }
    }

    /// What may follow a text of single bytes, and whether that may be the end; `None` if the text is not
    /// possible.
    fn after(grammar: &Grammar, begun: &str) -> Option<(Vec<String>, bool)> {
        let mut constraint = Constraint::new(&vocabulary(), grammar).unwrap();
        for byte in begun.bytes() {
            constraint.accept(u32::from(byte)).ok()?;
        }
        let mut scores = [0.0; END as usize + 40];
        constraint.mask(&mut scores).unwrap();
        assert_eq!(scores[CONTROL as usize], f32::NEG_INFINITY);
        assert!(scores[END as usize + 1..].iter().all(|score| *score == f32::NEG_INFINITY), "no tokens");
        let allowed = (0..CONTROL).filter(|token| scores[*token as usize] == 0.0);
        let texts = allowed.map(|token| String::from_utf8_lossy(&text(token)).into_owned());
        Some((texts.collect(), scores[END as usize] == 0.0))
    }

    /// A text that a model writes that has no idea of anything.
    fn written(grammar: &Grammar, seed: u64) -> String {
        let constraint = Constraint::new(&vocabulary(), grammar).unwrap();
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let mut sampler = Sampler::constrained(sampling, &[], constraint);
        let mut scores = [0.0; END as usize + 1];
        // It likes to come to an end.
        for likely in [b'"', b'}', b']', b','] {
            scores[likely as usize] = 4.0;
        }
        scores[END as usize] = 9.0;
        let mut all = Vec::new();
        for _ in 0..2_000 {
            let chosen = sampler.choose(&scores).unwrap();
            all.extend(text(chosen.token));
            if chosen.over {
                return String::from_utf8(all).unwrap();
            }
        }
        panic!("it does not end: {}", String::from_utf8_lossy(&all));
    }

    const PERSON: &str = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":9},
        "age":{"type":"integer","minimum":0,"maximum":150},"role":{"enum":["admin","guest"]},
        "tags":{"type":"array","items":{"type":"boolean"},"maxItems":3}},
        "required":["name","age","role"],"additionalProperties":false}"#;

    #[test]
    fn json_is_whole_and_fits_its_schema() {
        for seed in 0..20 {
            let person: Value =
                serde_json::from_str(&written(&Grammar::JsonSchema(PERSON.into()), seed)).unwrap();
            assert!(person["name"].as_str().unwrap().chars().count() <= 9);
            assert!(person["age"].as_u64().unwrap() <= 150);
            assert!(["admin", "guest"].contains(&person["role"].as_str().unwrap()));
            let tags = person.get("tags").map_or(0, |tags| tags.as_array().unwrap().len());
            assert!(tags <= 3 && person.as_object().unwrap().len() <= 4, "{person}");
            let object: Value = serde_json::from_str(&written(&Grammar::JsonObject, seed)).unwrap();
            assert!(object.is_object());
        }
    }

    #[test]
    fn only_what_fits_may_follow_and_the_end_where_it_is_complete() {
        let date = Grammar::Regex(r"\d{2}(-\d{2})?".into());
        let yes = Grammar::Choice(["yes", "yesno", "\"\u{7f}\n"].map(String::from).into());
        let sum = Grammar::Lark("start: NUMBER (\"+\" NUMBER)*\nNUMBER: /[12]/".into());
        let name = Grammar::JsonSchema(r#"{"const":"name"}"#.into());
        for (grammar, begun, follows, ends) in [
            (&date, "1", "0 1 2 3 4 5 6 7 8 9", false),
            (&date, "12", "-", true),
            (&date, "12-", "0 1 2 3 4 5 6 7 8 9 12", false),
            (&yes, "", "\" y yes ye", false),
            (&yes, "yes", "n no", true),
            (&yes, "\"\u{7f}", "\n", false),
            (&sum, "", "1 2", false),
            (&sum, "1", "+", true),
            (&sum, "1+", "1 2", false),
            (&name, "\"", "n name", false),
        ] {
            let expected: Vec<String> = follows.split(' ').map(String::from).collect();
            assert_eq!(after(grammar, begun), Some((expected, ends)), "after `{begun}`");
        }
        for (grammar, begun) in [(&date, "1x"), (&yes, "no"), (&sum, "++"), (&name, "name")] {
            assert_eq!(after(grammar, begun), None, "{begun}");
        }
    }

    #[test]
    fn the_end_says_that_it_is_over_and_nothing_else_follows() {
        let mut constraint = Constraint::new(&vocabulary(), &Grammar::Regex("ab?".into())).unwrap();
        assert!(constraint.accept(END).is_err(), "nothing is complete yet");
        let mut constraint = Constraint::new(&vocabulary(), &Grammar::Regex("ab?".into())).unwrap();
        assert_eq!(constraint.accept(u32::from(b'a')), Ok(false));
        let mut open = Constraint::new(&vocabulary(), &Grammar::Regex("ab?".into())).unwrap();
        assert_eq!(open.accept(u32::from(b'a')), Ok(false));
        assert_eq!(open.accept(END), Ok(true));
        assert_eq!(constraint.accept(u32::from(b'b')), Ok(true), "nothing can follow");
        let mut scores = [0.0; END as usize + 1];
        constraint.mask(&mut scores).unwrap();
        assert_eq!(scores.iter().filter(|score| **score == 0.0).count(), 1);
        assert_eq!(scores[END as usize], 0.0);
        assert_eq!(constraint.accept(END), Ok(true), "and once more");
        assert!(constraint.accept(u32::from(b'b')).is_err());
        assert!(constraint.accept(END).is_err(), "after an error it is of no use");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let schema = |text: &str| Grammar::JsonSchema(text.into());
        for (grammar, expected) in [
            (schema("{"), "the schema is not JSON: EOF while parsing an object at line 1 column 1"),
            (schema("true"), "a JSON schema must be an object"),
            (schema(r#"{"type":"strin"}"#), "Invalid type: strin"),
            (schema(r#"{"not":{}}"#), "Unimplemented keys: [\"not\"]"),
            (schema(r##"{"$ref":"#/$defs/a"}"##), "Reference segment '$defs' not found in '#/$defs/a'."),
            (schema(r#"{"$ref":"file:///etc/passwd"}"#), "ref 'file:///etc/passwd'"),
            (schema(r##"{"$ref":"#"}"##), NOTHING_FITS),
            (schema(r#"{"allOf":[{"type":"null"},{"type":"string"}]}"#), "Unsatisfiable schema"),
            (schema(r#"{"pattern":"(a"}"#), "unclosed group"),
            (schema(r#"{"multipleOf":0}"#), "`multipleOf` `0`, which is not from 1e-6 to 1e6"),
            (schema(r#"{"minimum":-9223372036854775808}"#), "`-9223372036854775808`, which is too low"),
            (Grammar::Regex("(a".into()), "unclosed group"),
            (Grammar::Regex("a\\".into()), "cannot end with a single"),
            (Grammar::Regex("(?=a)".into()), "look-around, including look-ahead"),
            (Grammar::Regex("[a&&b]".into()), NOTHING_FITS),
            (Grammar::Choice(Vec::new()), "there is nothing to choose from"),
            (Grammar::Lark("start: (".into()), "Expected token"),
            (Grammar::Lark("start: %json {}".into()), "`%json` is not supported in a grammar"),
            (Grammar::Lark("start: /a\nb/".into()), "must end on the line where it begins"),
        ] {
            let error = Constraint::new(&vocabulary(), &grammar).unwrap_err();
            assert!(error.contains(expected), "`{error}` of {grammar:?}");
        }
    }

    /// What took seconds or gigabytes with the limits of the library alone, and what is just large.
    #[test]
    fn what_is_too_much_is_refused_soon() {
        let joined =
            |count: usize, of: &dyn Fn(usize) -> String| (0..count).map(of).collect::<Vec<_>>().join(",");
        let schema = Grammar::JsonSchema;
        let words = joined(4_000, &|word| format!("\"{word}\""));
        let objects = joined(1_500, &|_| r#"{"type":"object"}"#.into());
        let tree = |name: &str| {
            format!(r##"{{"properties":{{"l":{{"$ref":"#/{name}"}},"r":{{"$ref":"#/{name}"}}}}}}"##)
        };
        let doubled: String = (0..40).map(|at| format!("A{at}: A{} A{}\n", at + 1, at + 1)).collect();
        for (grammar, expected) in [
            (schema(" ".repeat(1 << 17)), "the JSON schema has `131072` bytes, more than `65536`"),
            (schema("[".repeat(60_000)), "recursion limit exceeded"),
            (
                schema(format!(r#"{{"properties":{{"a":{{"enum":[{words}]}}}},"anyOf":[{objects}]}}"#)),
                "is too much",
            ),
            (
                schema(format!(r#"{{"allOf":[{{"anyOf":[{objects}]}},{{"anyOf":[{objects}]}}]}}"#)),
                "is too much",
            ),
            (
                schema(format!(
                    r##"{{"allOf":[{{"$ref":"#/a"}},{{"$ref":"#/b"}}],"a":{},"b":{}}}"##,
                    tree("a"),
                    tree("b")
                )),
                "combines one that contains itself",
            ),
            (
                schema(format!(
                    r#"{{"patternProperties":{{{}}}}}"#,
                    joined(2_000, &|at| format!(r#""^{at}x.*":{{}}"#))
                )),
                "`2000` `patternProperties`, more than `16`",
            ),
            (
                schema(format!(r#"{{"properties":{{{}}}}}"#, joined(5_000, &|at| format!(r#""{at}":{{}}"#)))),
                "is too much",
            ),
            (schema(format!(r#"{{"pattern":"{}"}}"#, "a?".repeat(16_000))), "the longest `32000`"),
            (Grammar::Regex("a?".repeat(16_000)), "has `32000` bytes, more than `4096`"),
            (Grammar::Choice(vec![String::new(); 100_000]), "more than `65536`"),
            (Grammar::Lark(format!("start: A0\n{doubled}A40: \"a\"?")), "more than `8192` bytes written out"),
            (Grammar::Lark(format!("start: {}\"a\"", "(".repeat(8_000))), "too deeply nested"),
        ] {
            let start = now();
            let error = Constraint::new(&vocabulary(), &grammar).expect_err(expected);
            assert!(error.contains(expected), "`{error}`");
            assert!(start.elapsed() < Duration::from_secs(2), "`{error}` after {:?}", start.elapsed());
        }
        for grammar in [
            schema(format!(r#"{{"type":"string","enum":[{words}]}}"#)),
            schema(format!(r#"{{"items":{}}}"#, r#"{"items":"#.repeat(100) + "{}" + &"}".repeat(100))),
            schema(r#"{"type":"array","minItems":1000000000,"items":{"minLength":1000000000}}"#.into()),
            Grammar::Regex("((a{1000}){1000}){1000}".into()),
            Grammar::Regex("a?".repeat(2_000)),
            Grammar::Choice((0..8_000).map(|at| at.to_string()).collect()),
        ] {
            let start = now();
            Constraint::new(&vocabulary(), &grammar).unwrap();
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        }
    }

    #[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn schemas_as_people_write_them_are_taken() {
        for schema in [
            // A tree, as Pydantic describes one.
            r##"{"$defs":{"Node":{"properties":{"value":{"title":"Value","type":"integer"},"children":
                {"items":{"$ref":"#/$defs/Node"},"title":"Children","type":"array"}},
                "required":["value","children"],"title":"Node","type":"object"}},"$ref":"#/$defs/Node"}"##,
            // One of several, told apart by a field.
            r##"{"$defs":{"A":{"properties":{"t":{"const":"a","type":"string"}},"required":["t"],
                "type":"object"},"B":{"properties":{"t":{"const":"b","type":"string"}},"required":["t"],
                "type":"object"}},"discriminator":{"propertyName":"t"},
                "oneOf":[{"$ref":"#/$defs/A"},{"$ref":"#/$defs/B"}]}"##,
            // A kind of another.
            r##"{"allOf":[{"$ref":"#/$defs/base"},{"properties":{"n":{"type":"integer"}},"required":["n"]}],
                "$defs":{"base":{"type":"object","properties":{"id":{"type":"string"},"of":{"type":"array",
                "items":{"type":"object","properties":{"q":{"type":"string"}}}}},"required":["id"]}}}"##,
            // At least one of two.
            r##"{"type":"object","properties":{"a":{"type":"string"},"b":{"$ref":"#"}},
                "anyOf":[{"required":["a"]},{"required":["b"]}]}"##,
        ] {
            let constraint = Constraint::new(&vocabulary(), &Grammar::JsonSchema(schema.into()));
            assert!(constraint.is_ok(), "{constraint:?} of {schema}");
        }
    }

    #[test]
    fn a_vocabulary_has_an_end_and_bounds() {
        let of =
            |tokens: &[&[u8]], end| ConstraintVocabulary::of_bytes(tokens.iter().copied(), end).map(drop);
        assert_eq!(of(&[b"a"], 1), Err("there is no token `1`".into()));
        assert!(of(&[b"a", &[b' '; 1 << 10], b""], 2).unwrap_err().contains("the longest of `1024`"));
        assert_eq!(of(&[b"a", b""], 1), Ok(()));
        // Without the tokens for it.
        let digits = ConstraintVocabulary::of_bytes([&b"1"[..], b""].into_iter(), 1).unwrap();
        let error = Constraint::new(&digits, &Grammar::Regex("a".into())).unwrap_err();
        assert_eq!(error, NOTHING_FITS);
    }

    #[test]
    fn constraints_go_from_thread_to_thread() {
        fn check<T: Send>() {}
        check::<Constraint>();
        check::<ConstraintVocabulary>();
    }
}

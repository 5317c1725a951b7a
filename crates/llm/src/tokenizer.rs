//! Text to tokens and back, by what a model's files say, computed by the library that model authors test
//! against: whatever a `tokenizer.json` describes, and of a GGUF file byte-level BPE (Sennrich et al. 2016;
//! the byte alphabet is GPT-2's).

use std::collections::BTreeSet;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PostProcessor, PreTokenizerWrapper, TruncationParams};

use crate::{FileError, Metadata, optional};

/// The type of a token that commands rather than is text, such as the end of a turn.
const CONTROL: i32 = 3;
/// The type of a token that is text but never made of others.
const USER_DEFINED: i32 = 4;

/// Bytes of a text that are looked at for each token that is left of it: a long word is one token.
const TOKEN_BYTES: usize = 64;

/// The tokens of an encoder.
#[derive(Debug)]
pub struct TextTokenizer {
    inner: tokenizers::Tokenizer,
    bytes_max: usize,
}

impl TextTokenizer {
    /// What a `tokenizer.json` describes, for a model of so many tokens; texts are cut after `tokens_max`.
    ///
    /// # Errors
    /// What the library says of the file, or that it is for another model.
    pub fn of_json(json: &[u8], vocabulary: usize, tokens_max: usize) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        let around = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if tokens_max <= around {
            return Err(format!(
                "texts of `{tokens_max}` tokens have no room for the `{around}` around each"
            ));
        }
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= vocabulary {
            return Err(format!("it has a token `{largest}`, and the model has `{vocabulary}` of them"));
        }
        // What the file says of these is for training.
        inner.with_padding(None);
        let truncation = TruncationParams { max_length: tokens_max, ..TruncationParams::default() };
        inner.with_truncation(Some(truncation)).map_err(|error| error.to_string())?;
        Ok(Self { inner, bytes_max: tokens_max.saturating_mul(TOKEN_BYTES) })
    }

    /// The tokens of a text, with those that the model wants around it.
    ///
    /// # Errors
    /// What the library says of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        // The library looks at all of a text before it cuts it, and takes a hundred times its bytes for that.
        let text = &text[..text.floor_char_boundary(self.bytes_max)];
        let encoding = self.inner.encode_fast(text, true).map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The tokens of a decoder.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The bytes of all tokens, one after the other, and where each begins.
    bytes: Vec<u8>,
    starts: Vec<usize>,
    /// The tokens that command rather than are text.
    control: BTreeSet<u32>,
    /// The bytes of the longest token.
    longest: usize,
    begin: Option<u32>,
    end: Option<u32>,
    turn_end: Option<u32>,
}

impl Tokenizer {
    /// What a GGUF file has.
    ///
    /// # Errors
    /// If something is missing, or the tokens are of a kind that is not known.
    pub fn of_gguf(metadata: &Metadata<'_>) -> Result<Self, FileError> {
        let kind = metadata.str("tokenizer.ggml.model")?;
        if kind != "gpt2" {
            return Err(unsupported(format!("its tokenizer is a `{}`", kind.escape_debug())));
        }
        let tokens = metadata.strs("tokenizer.ggml.tokens")?;
        let types = optional(metadata.i32s("tokenizer.ggml.token_type"))?.unwrap_or_default();
        let type_of = |id: usize| types.get(id).copied().unwrap_or(1);
        let merges = metadata.strs("tokenizer.ggml.merges")?.into_iter().map(|merge| {
            let parts =
                merge.split_once(' ').ok_or_else(|| unsupported("a merge is not of two parts".into()))?;
            Ok((parts.0.to_owned(), parts.1.to_owned()))
        });
        let merges = merges.collect::<Result<Vec<_>, FileError>>()?;
        let ids = tokens.iter().zip(0_u32..);
        let vocabulary: Vocab = ids.map(|(token, id)| ((*token).to_owned(), id)).collect();
        let model = BPE::builder().vocab_and_merges(vocabulary, merges).build();
        let mut inner = tokenizers::Tokenizer::new(model.map_err(|error| unsupported(error.to_string()))?);
        inner.with_pre_tokenizer(Some(pre_tokenizer(metadata)?));
        let (mut bytes, mut starts, mut control) = (Vec::new(), vec![0], BTreeSet::new());
        let mut added = Vec::new();
        for (token, id) in tokens.iter().zip(0_u32..) {
            let kind = type_of(id as usize);
            if kind == CONTROL {
                control.insert(id);
            }
            if kind == CONTROL || kind == USER_DEFINED {
                added.push(AddedToken::from(*token, kind == CONTROL).normalized(false));
                bytes.extend(token.as_bytes());
            } else {
                bytes.extend(token.chars().filter_map(byte_of));
            }
            starts.push(bytes.len());
        }
        inner.add_special_tokens(&added);
        let begin = optional(metadata.bool("tokenizer.ggml.add_bos_token"))?.unwrap_or(false);
        let begin = if begin { Some(metadata.u32("tokenizer.ggml.bos_token_id")?) } else { None };
        let end = optional(metadata.u32("tokenizer.ggml.eos_token_id"))?;
        let turn_end = optional(metadata.u32("tokenizer.ggml.eot_token_id"))?;
        let mut named = [begin, end, turn_end].into_iter().flatten();
        if let Some(unknown) = named.find(|token| *token as usize >= tokens.len()) {
            let count = tokens.len();
            return Err(unsupported(format!("it names a token `{unknown}`, and has `{count}` of them")));
        }
        let longest = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        Ok(Self { inner, bytes, starts, control, longest, begin, end, turn_end })
    }

    /// The most bytes that so many tokens stand for: a longer text has more of them.
    pub fn bytes_max(&self, tokens: u32) -> usize {
        self.longest.saturating_mul(tokens as usize)
    }

    /// The tokens of a text, in which control tokens may be written out. It takes memory of about a hundred
    /// times the text.
    ///
    /// # Errors
    /// What the library says of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| error.to_string())?;
        Ok(self.begin.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The bytes of a token, which need not be whole characters; none if there is no such token.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let at = token as usize;
        match (self.starts.get(at), self.starts.get(at + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start..*end],
            _ => &[],
        }
    }

    /// How many tokens there are.
    pub fn token_count(&self) -> usize {
        self.starts.len() - 1
    }

    /// What a token adds to a text: its bytes, and nothing if it commands.
    pub fn text(&self, token: u32) -> &[u8] {
        if self.control.contains(&token) { &[] } else { self.bytes(token) }
    }

    /// The token that ends an answer.
    pub fn end(&self) -> Option<u32> {
        self.end
    }

    /// Whether an answer ends with this token: the end of a text, or of a turn.
    pub fn is_end(&self, token: u32) -> bool {
        self.end == Some(token) || self.turn_end == Some(token)
    }
}

/// How text is cut before tokens are looked for.
fn pre_tokenizer(metadata: &Metadata<'_>) -> Result<Sequence, FileError> {
    let name = metadata.str("tokenizer.ggml.pre")?;
    let bytes = ByteLevel::new(false, false, true);
    let parts: Vec<PreTokenizerWrapper> = match name {
        "gpt-2" => vec![bytes.into()],
        "smollm" => vec![Digits::new(true).into(), bytes.into()],
        other => return Err(unsupported(format!("its text is cut as for `{}`", other.escape_debug()))),
    };
    Ok(Sequence::new(parts))
}

/// The byte that a character of a token stands for: GPT-2 writes printable bytes as themselves, and the rest
/// in their order from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    if let Ok(byte) = u8::try_from(code) {
        return is_printable(byte).then_some(byte);
    }
    let hidden = usize::try_from(code - 0x100).ok()?;
    (0..=u8::MAX).filter(|byte| !is_printable(*byte)).nth(hidden)
}

fn unsupported(what: String) -> FileError {
    let instead = "take a model with byte-level BPE tokens, such as SmolLM".into();
    FileError::Unsupported { what, offset: 0, instead }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::builder::{GgufBuilder, text};
    use crate::gguf::{Gguf, ValueType};

    #[test]
    fn a_tokenizer_names_no_token_that_it_has_not() {
        let file = |begin: u32| {
            GgufBuilder::new()
                .entry("tokenizer.ggml.model", ValueType::Str, &text("gpt2"))
                .entry("tokenizer.ggml.pre", ValueType::Str, &text("gpt-2"))
                .array(
                    "tokenizer.ggml.tokens",
                    ValueType::Str,
                    3,
                    &[text("a"), text("b"), text("ab")].concat(),
                )
                .array("tokenizer.ggml.merges", ValueType::Str, 1, &text("a b"))
                .entry("tokenizer.ggml.add_bos_token", ValueType::Bool, &[1])
                .u32("tokenizer.ggml.bos_token_id", begin)
                .finish()
        };
        let tokenizer = |file: &[u8]| Tokenizer::of_gguf(&Gguf::parse(file).unwrap().metadata);
        let good = tokenizer(&file(1)).unwrap();
        assert_eq!(good.encode("abb"), Ok(vec![1, 2, 1]));
        assert_eq!(good.bytes_max(10), 20, "the longest has two bytes");
        let said = tokenizer(&file(3)).unwrap_err().to_string();
        assert!(said.contains("it names a token `3`, and has `3` of them"), "{said}");
    }
}

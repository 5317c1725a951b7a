//! What is needed to talk to a language model in words: how text becomes tokens and back, how a conversation
//! is written, and what its sequences take.

use std::sync::OnceLock;

use quadrant_llm::{Architecture, ChatTemplate, ConstraintVocabulary, FileError, Gguf, Tokenizer};

/// Tokens of a page of keys and values.
pub(crate) const PAGE_TOKENS: usize = 32;

/// See the module's text.
#[derive(Debug)]
pub struct Language {
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How conversations are written, if the model's file says so.
    pub template: Option<ChatTemplate>,
    /// Tokens of the longest sequence that the model was made for.
    pub tokens_max: usize,
    /// Tokens of a page of keys and values.
    pub page_tokens: usize,
    /// Bytes of such a page.
    pub page_bytes: usize,
    /// The vocabulary as grammars need it, once one was asked for.
    vocabulary: OnceLock<Result<ConstraintVocabulary, String>>,
}

impl Language {
    /// What a file says.
    ///
    /// # Errors
    /// If something is missing, or is of a kind that is not known.
    pub(crate) fn of_gguf(gguf: &Gguf<'_>, architecture: &Architecture) -> Result<Self, FileError> {
        let tokenizer = Tokenizer::of_gguf(&gguf.metadata)?;
        if tokenizer.token_count() != architecture.vocabulary {
            let (has, wants) = (tokenizer.token_count(), architecture.vocabulary);
            return Err(FileError::Unsupported {
                what: format!("it has `{has}` tokens, and its weights are for `{wants}`"),
                offset: 0,
                instead: "fetch the file again".into(),
            });
        }
        Ok(Self {
            tokenizer,
            template: ChatTemplate::of_gguf(&gguf.metadata)?,
            tokens_max: architecture.context,
            page_tokens: PAGE_TOKENS,
            // Keys and values in half precision.
            page_bytes: PAGE_TOKENS
                * architecture.layers
                * architecture.key_heads
                * architecture.head_size
                * 4,
            vocabulary: OnceLock::new(),
        })
    }

    /// The vocabulary as grammars need it; the first time it takes a moment.
    pub(crate) fn vocabulary(&self) -> Result<&ConstraintVocabulary, String> {
        let vocabulary = self.vocabulary.get_or_init(|| ConstraintVocabulary::new(&self.tokenizer));
        vocabulary.as_ref().map_err(Clone::clone)
    }
}

//! A sequence of tokens that a language model continues, as its request owns it: what is to be generated, the
//! tokens so far, and what chooses the next one.
//!
//! It lives as long as its request and is lent to the step that computes it, so nothing is left behind when a
//! request leaves, and a step may run on any lane.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use quadrant_llm::{Constraint, Grammar, Likely, Sampler, Sampling, TextStream};

use crate::Language;

/// What is to be generated.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The tokens to be continued, at least one.
    pub prompt: Vec<u32>,
    /// The most tokens that are generated, at least one.
    pub tokens_max: u32,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer, and are not part of it.
    pub stops: Vec<String>,
    /// Whether it goes on behind the token that ends a text.
    pub ignores_end: bool,
    /// What the text must be.
    pub grammar: Option<Grammar>,
}

/// Why a sequence is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its text, or a stop text came.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
    /// Its grammar does not go on; there is no token.
    Failed(String),
}

/// A token that was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The token.
    pub token: u32,
    /// The text that is decided by now: of this token and of those before it what could not be given earlier,
    /// because it might have become a stop text or was no whole character.
    pub text: String,
    /// Its probability and those of the likeliest, if they were asked for.
    pub likely: Option<Likely>,
    /// Whether it is the last one, and why.
    pub finish: Option<Finish>,
}

/// See the module's text.
pub struct Sequence {
    state: Mutex<State>,
}

pub(crate) struct State {
    /// The prompt and what was generated.
    pub(crate) tokens: Vec<u32>,
    language: Arc<Language>,
    sampler: Sampler,
    text: TextStream,
    /// Tokens that may still be generated.
    left: u32,
    ignores_end: bool,
}

impl Sequence {
    /// A sequence that begins with its prompt. With a grammar it may take some hundred milliseconds.
    ///
    /// # Errors
    /// What is wrong with the grammar.
    pub fn new(generation: Generation, language: Arc<Language>) -> Result<Self, String> {
        let Generation { prompt, tokens_max, sampling, stops, ignores_end, grammar } = generation;
        let sampler = match grammar {
            Some(grammar) => {
                let constraint = Constraint::new(language.vocabulary()?, &grammar)?;
                Sampler::constrained(sampling, &prompt, constraint)
            }
            None => Sampler::new(sampling, &prompt),
        };
        let state = State {
            tokens: prompt,
            language,
            sampler,
            text: TextStream::new(stops),
            left: tokens_max,
            ignores_end,
        };
        Ok(Self { state: Mutex::new(state) })
    }

    /// Its state, for one step.
    pub(crate) fn lend<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    /// Takes in the scores of the next token, and chooses it.
    pub(crate) fn choose(&mut self, scores: &[f32]) -> Generated {
        let chosen = match self.sampler.choose(scores) {
            Ok(chosen) => chosen,
            Err(reason) => {
                let (text, finish) = (self.text.finish(), Some(Finish::Failed(reason)));
                return Generated { token: 0, text, likely: None, finish };
            }
        };
        let token = chosen.token;
        self.tokens.push(token);
        self.left = self.left.saturating_sub(1);
        let is_end = self.language.tokenizer.is_end(token) && !self.ignores_end;
        let mut text = String::new();
        let mut finish = if is_end { Some(Finish::Stop) } else { None };
        if !is_end {
            let piece = self.text.push(self.language.tokenizer.text(token));
            text = piece.text;
            if piece.stopped || chosen.over {
                finish = Some(Finish::Stop);
            } else if self.left == 0 {
                finish = Some(Finish::Length);
            }
        }
        if finish.is_some() {
            text.push_str(&self.text.finish());
        }
        Generated { token, text, likely: chosen.likely, finish }
    }
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sequence").finish_non_exhaustive()
    }
}

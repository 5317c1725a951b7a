//! Which token comes next.
//!
//! The scores of all tokens are changed in the order that vLLM keeps: bias, penalties, temperature, then what
//! is too unlikely is left out (top-k, min-p, top-p), and one of the rest is drawn. A sequence draws one
//! number per token from its own seed, so its tokens do not depend on what else is in a pass. What a
//! constraint does not allow has no chance, whatever its score.

use std::collections::BTreeMap;

use crate::Constraint;

/// How tokens are chosen. The default takes the likeliest.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// What scores are divided by; 0 takes the likeliest token.
    pub temperature: f32,
    /// How many of the likeliest tokens are left; 0 leaves all.
    pub top_k: usize,
    /// The likeliest tokens are left that together have this probability, 0 to 1.
    pub top_p: f32,
    /// Tokens are left that have at least this part of the likeliest one's probability, 0 to 1.
    pub min_p: f32,
    /// Subtracted from the scores of tokens that were generated.
    pub presence_penalty: f32,
    /// Subtracted from the scores of tokens for each time that they were generated.
    pub frequency_penalty: f32,
    /// Scores of tokens that were in the prompt or generated are divided by it if positive, else multiplied
    /// (Keskar et al. 2019, "CTRL", section 4.1); 1 changes nothing.
    pub repetition_penalty: f32,
    /// Added to the scores of single tokens.
    pub bias: BTreeMap<u32, f32>,
    /// What the draws follow from.
    pub seed: u64,
    /// How many of the likeliest tokens are given with their probabilities beside the chosen one.
    pub log_probabilities: Option<usize>,
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: u32,
    /// Its probability and those of the likeliest, if they were asked for.
    pub likely: Option<Likely>,
    /// Whether the constraint is met and nothing can follow; never without one.
    pub over: bool,
}

/// Natural logarithms of probabilities, of the model's own scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Likely {
    /// That of the chosen token.
    pub chosen: f32,
    /// The likeliest tokens, in falling order.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: fastrand::Rng,
    /// How often each token was generated; 0 for one that was only in the prompt.
    seen: BTreeMap<u32, u32>,
    constraint: Option<Constraint>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            bias: BTreeMap::new(),
            seed: 0,
            log_probabilities: None,
        }
    }
}

impl Sampling {
    fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

impl Sampler {
    /// For a sequence that begins with `prompt`.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let random = fastrand::Rng::with_seed(sampling.seed);
        let seen = if sampling.has_penalties() { prompt } else { &[] };
        Self { random, seen: seen.iter().map(|token| (*token, 0)).collect(), sampling, constraint: None }
    }

    /// The same, and what follows the prompt must be what `constraint` says.
    pub fn constrained(sampling: Sampling, prompt: &[u32], constraint: Constraint) -> Self {
        Self { constraint: Some(constraint), ..Self::new(sampling, prompt) }
    }

    /// Chooses the next token by its scores (logits), of which there must be one at least.
    ///
    /// # Errors
    /// What [`Constraint::mask`] and [`Constraint::accept`] say; then the text cannot go on.
    pub fn choose(&mut self, scores: &[f32]) -> Result<Chosen, String> {
        let likely = self.sampling.log_probabilities.map(|count| log_probabilities(scores, count));
        let changed = self.changed(scores)?;
        let scores_left = changed.as_deref().unwrap_or(scores);
        let token =
            if self.sampling.temperature > 0.0 { self.draw(scores_left) } else { likeliest(scores_left) };
        if self.sampling.has_penalties() {
            *self.seen.entry(token).or_default() += 1;
        }
        let likely = likely.map(|(total, top)| Likely { chosen: scores[token as usize] - total, top });
        let over = self.constraint.as_mut().map_or(Ok(false), |constraint| constraint.accept(token))?;
        Ok(Chosen { token, likely, over })
    }

    /// The scores with biases, penalties and what a constraint leaves of them, if there are any.
    fn changed(&mut self, scores: &[f32]) -> Result<Option<Vec<f32>>, String> {
        let Sampling { presence_penalty, frequency_penalty, repetition_penalty, bias, .. } = &self.sampling;
        if bias.is_empty() && !self.sampling.has_penalties() && self.constraint.is_none() {
            return Ok(None);
        }
        let mut scores = scores.to_vec();
        for (token, bias) in bias {
            if let Some(score) = scores.get_mut(*token as usize) {
                *score += bias;
            }
        }
        for (token, count) in &self.seen {
            if let Some(score) = scores.get_mut(*token as usize) {
                *score = if *score > 0.0 { *score / repetition_penalty } else { *score * repetition_penalty };
                if *count > 0 {
                    *score -= presence_penalty + frequency_penalty * *count as f32;
                }
            }
        }
        // The rest changes each score by itself, so this may come last, where nothing can lift one again.
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(&mut scores)?;
        }
        Ok(Some(scores))
    }

    fn draw(&mut self, scores: &[f32]) -> u32 {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let number = self.random.f64();
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // By temperature, and relative to the likeliest: the exponential is a probability but for its total.
        // What is infinitely unlikely is left out, or rounding could choose it in the end.
        let lowest = if min_p > 0.0 { min_p.ln() } else { f32::MIN };
        let relative = |score: &f32| (score - largest) / temperature;
        let with_ids = scores.iter().map(relative).zip(0_u32..);
        let mut left: Vec<(f32, u32)> = with_ids.filter(|(score, _)| *score >= lowest).collect();
        if left.is_empty() {
            // Scores that are not numbers: there is nothing to draw from.
            return likeliest(scores);
        }
        let likelier = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if top_k > 0 && top_k < left.len() {
            left.select_nth_unstable_by(top_k - 1, likelier);
            left.truncate(top_k);
        }
        if top_p < 1.0 {
            left.sort_unstable_by(likelier);
        }
        // Of ten thousands of tokens single precision would lose the last ones.
        let mut total = 0.0_f64;
        for (score, _) in &mut left {
            *score = score.exp();
            total += f64::from(*score);
        }
        if top_p < 1.0 {
            let mut sum = 0.0;
            let before = left.iter().take_while(|(weight, _)| {
                let is_left = sum < f64::from(top_p) * total;
                sum += f64::from(*weight);
                is_left
            });
            left.truncate(before.count().max(1));
            total = left.iter().map(|(weight, _)| f64::from(*weight)).sum();
        }
        let mut rest = number * total;
        for (weight, token) in &left {
            rest -= f64::from(*weight);
            if rest < 0.0 {
                return *token;
            }
        }
        left.last().map_or(0, |(_, token)| *token)
    }
}

/// The token with the highest score; the first of several.
fn likeliest(scores: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, score) in (0..).zip(scores) {
        if *score > best.1 {
            best = (token, *score);
        }
    }
    best.0
}

/// What turns a score into a log-probability by subtraction.
pub fn log_total(scores: &[f32]) -> f64 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|score| f64::from(score - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// The same, and the `count` likeliest tokens with theirs.
fn log_probabilities(scores: &[f32], count: usize) -> (f32, Vec<(u32, f32)>) {
    let total = log_total(scores) as f32;
    let mut top: Vec<(u32, f32)> = (0..).zip(scores).map(|(token, score)| (token, score - total)).collect();
    let likelier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < top.len() {
        top.select_nth_unstable_by(count, likelier);
        top.truncate(count);
    }
    top.sort_unstable_by(likelier);
    (total, top)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConstraintVocabulary, Grammar};

    /// Log-probabilities of 0.5, 0.25, 0.125, 0.0625 and 0.0625, and one that is all but impossible.
    fn scores() -> Vec<f32> {
        [0.5_f32, 0.25, 0.125, 0.0625, 0.0625, 1e-30].map(f32::ln).to_vec()
    }

    fn drawn(sampling: &Sampling, draws: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling.clone(), &[]);
        let mut counts = vec![0; 6];
        for _ in 0..draws {
            counts[sampler.choose(&scores()).unwrap().token as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let counts = drawn(&Sampling { temperature: 1.0, ..Sampling::default() }, 16_000);
        for (count, expected) in counts.iter().zip([8_000, 4_000, 2_000, 1_000, 1_000, 0]) {
            assert!(count.abs_diff(expected) < 260, "{counts:?}");
        }
        let hot = drawn(&Sampling { temperature: 2.0, ..Sampling::default() }, 16_000);
        // The square roots of the probabilities, over their sum.
        assert!(hot[0].abs_diff(5_325) < 260 && hot[1].abs_diff(3_765) < 260, "{hot:?}");
    }

    #[test]
    fn what_is_unlikely_is_left_out() {
        let all = Sampling { temperature: 1.0, ..Sampling::default() };
        for (sampling, left) in [
            (Sampling { top_k: 2, ..all.clone() }, [true, true, false, false, false, false]),
            (Sampling { top_k: 9, ..all.clone() }, [true, true, true, true, true, false]),
            (Sampling { top_p: 0.75, ..all.clone() }, [true, true, false, false, false, false]),
            (Sampling { top_p: 0.8, ..all.clone() }, [true, true, true, false, false, false]),
            (Sampling { top_p: 0.0, ..all.clone() }, [true, false, false, false, false, false]),
            (Sampling { min_p: 0.25, ..all.clone() }, [true, true, true, false, false, false]),
            (Sampling { top_k: 3, top_p: 0.6, ..all.clone() }, [true, true, false, false, false, false]),
            (Sampling::default(), [true, false, false, false, false, false]),
        ] {
            let counts = drawn(&sampling, 2_000);
            assert_eq!(counts.iter().map(|count| *count > 0).collect::<Vec<_>>(), left, "{sampling:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let tokens = |seed| {
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, &[]);
            (0..50).map(|_| sampler.choose(&scores()).unwrap().token).collect::<Vec<_>>()
        };
        assert_eq!(tokens(7), tokens(7));
        assert_ne!(tokens(7), tokens(8));
    }

    #[test]
    fn biases_and_penalties_change_what_is_likeliest() {
        let choose = |sampling: Sampling, prompt: &[u32], times: usize| {
            let mut sampler = Sampler::new(sampling, prompt);
            (0..times).map(|_| sampler.choose(&[2.0, 1.5, -1.0]).unwrap().token).collect::<Vec<_>>()
        };
        let plain = Sampling::default();
        let biased = Sampling { bias: BTreeMap::from([(2, 4.0), (9, 1.0)]), ..plain.clone() };
        assert_eq!(choose(biased, &[], 2), [2, 2]);
        let presence = Sampling { presence_penalty: 1.0, ..plain.clone() };
        assert_eq!(choose(presence.clone(), &[], 3), [0, 1, 0], "once for ever, however often");
        assert_eq!(choose(presence, &[0], 1), [0], "a prompt's tokens were not generated");
        let frequency = Sampling { frequency_penalty: 1.0, ..plain.clone() };
        assert_eq!(choose(frequency, &[], 5), [0, 1, 0, 1, 0]);
        let repetition = Sampling { repetition_penalty: 2.0, ..plain };
        assert_eq!(choose(repetition, &[0], 2), [1, 0], "also a prompt's tokens");
    }

    #[test]
    fn log_probabilities_are_those_of_the_scores_themselves() {
        let sampling = Sampling {
            bias: BTreeMap::from([(3, 100.0)]),
            log_probabilities: Some(2),
            ..Sampling::default()
        };
        let chosen = Sampler::new(sampling, &[]).choose(&scores()).unwrap();
        let likely = chosen.likely.unwrap();
        assert_eq!(chosen.token, 3);
        assert!((likely.chosen - 0.0625_f32.ln()).abs() < 1e-6);
        assert_eq!(likely.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1]);
        assert!((likely.top[1].1 - 0.25_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn scores_that_are_no_numbers_give_a_token_all_the_same() {
        for temperature in [0.0, 1.0] {
            let sampling = Sampling { temperature, log_probabilities: Some(1), ..Sampling::default() };
            for bad in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
                assert!(Sampler::new(sampling.clone(), &[]).choose(&[bad; 3]).unwrap().token < 3);
            }
        }
    }

    #[test]
    fn a_constraint_outweighs_scores_and_biases_and_leaves_probabilities() {
        let tokens = [&b"a"[..], b"b", b"c", b""];
        let vocabulary = ConstraintVocabulary::of_bytes(tokens.into_iter(), 3).unwrap();
        for temperature in [0.0, 1.0] {
            let constraint = Constraint::new(&vocabulary, &Grammar::Regex("bc?".into())).unwrap();
            let sampling = Sampling {
                temperature,
                bias: BTreeMap::from([(0, f32::INFINITY)]),
                presence_penalty: 50.0,
                log_probabilities: Some(1),
                ..Sampling::default()
            };
            let mut sampler = Sampler::constrained(sampling, &[0], constraint);
            let scores = [30.0, 0.0, 0.0, -40.0];
            let first = sampler.choose(&scores).unwrap();
            assert_eq!((first.token, first.over), (1, false));
            assert_eq!(first.likely, Some(Likely { chosen: -30.0, top: vec![(0, 0.0)] }));
            let second = sampler.choose(&scores).unwrap();
            assert_eq!((second.token, second.over), (2, true), "the end is possible too, but unlikely");
        }
        // No number, so the first token is taken, which may not come.
        let constraint = Constraint::new(&vocabulary, &Grammar::Regex("b".into())).unwrap();
        let mut sampler = Sampler::constrained(Sampling::default(), &[], constraint);
        assert!(sampler.choose(&[f32::NAN; 4]).is_err());
    }
}

//! The language engine by itself, with no server around it: a model, some cores, one kind of step, timed.
//! And how fast those cores read memory, which is what a decoded token is bound by.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use quadrant_kernels::{Cache, CacheShape, Cpu, Helper, Precision, Team};
use quadrant_llm::{Architecture, Decoder, Forward, Gguf, Token, Tokenizer, log_total};
use quadrant_sys::{FileMap, allowed_cores, confine_thread};
use quadrant_types::CoreSet;
use serde::Deserialize;
use serde_json::json;

use crate::say;

/// What is timed, and where.
#[derive(Args, Debug)]
pub(crate) struct LanguageArgs {
    /// The model's GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// The cores, a thread on each.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    cores: Vec<usize>,
    /// Tokens of a prompt that goes through in one pass.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Sequences that are decoded together, each from `depth` on.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    sequences: Vec<usize>,
    /// Tokens that each sequence has before.
    #[arg(long, default_value_t = 128)]
    depth: usize,
    /// Tokens that each sequence gets.
    #[arg(long, default_value_t = 32)]
    tokens: usize,
}

/// What is held against the exact model.
#[derive(Args, Debug)]
pub(crate) struct ErrorArgs {
    /// The model's GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// What llama.cpp says: a list of texts as JSON, each with its `tokens` and, from the second token on,
    /// the `log_probabilities` of each after those before it.
    #[arg(long)]
    llama: PathBuf,
}

/// A text as llama.cpp sees it.
#[derive(Debug, Deserialize)]
struct Scored {
    text: String,
    tokens: Vec<u32>,
    log_probabilities: Vec<f64>,
}

/// Tokens of a page of the cache.
const PAGE_TOKENS: usize = 16;
/// More than any cache holds, on each core.
const READ_BYTES: usize = 256 << 20;
/// How often it is read; the best counts.
const READS: usize = 3;

/// Times each kind of step once, and says so as a line of JSON.
pub(crate) fn run(args: &LanguageArgs) -> Result<()> {
    let (decoder, _) = load(&args.model)?;
    let allowed = allowed_cores()?;
    let is_allowed = |core: &usize| allowed.cores().any(|allowed| allowed == *core);
    ensure!(args.cores.iter().all(is_allowed), "this process may not use these cores");
    let read = reading(&args.cores)?;
    let cpu = Cpu::best();
    let mut timed = Timed { forward: Forward::new(&decoder, cpu, team(&args.cores)?), decoder: &decoder };
    let prefill = timed.prefill(args.prompt);
    let mut decode = Vec::new();
    for sequences in &args.sequences {
        let per_second = timed.decode(*sequences, args.depth, args.tokens);
        decode.push(json!({ "sequences": sequences, "tokens_per_s": per_second }));
    }
    say(&json!({
        "cpu": cpu.name(),
        "cores": args.cores.len(),
        "weight_bytes": decoder.bytes(),
        "read_gb_per_s": read / 1e9,
        "prefill_tokens_per_s": prefill,
        "decode": decode,
    })
    .to_string());
    Ok(())
}

/// How far this engine and llama.cpp are from the same model in plain floats, as a line of JSON: the root
/// of the mean square of the difference of log-probabilities, over all tokens of all texts.
pub(crate) fn error(args: &ErrorArgs) -> Result<()> {
    let (decoder, tokenizer) = load(&args.model)?;
    let exact = decoder.dequantised()?;
    let llama =
        std::fs::read(&args.llama).with_context(|| format!("cannot read `{}`", args.llama.display()))?;
    let texts: Vec<Scored> = serde_json::from_slice(&llama).context("not what llama.cpp was asked for")?;
    let mut ours = Timed { forward: Forward::new(&decoder, Cpu::best(), Team::alone()), decoder: &decoder };
    let mut plain = Timed { forward: Forward::new(&exact, Cpu::best(), Team::alone()), decoder: &exact };
    let (half, single) = (Precision::Half, Precision::Single);
    let (mut ours_off, mut llama_off, mut count) = (0.0, 0.0, 0_u32);
    for Scored { text, tokens, log_probabilities } in &texts {
        let own = tokenizer.encode(text).map_err(|error| anyhow!("cannot tokenize: {error}"))?;
        ensure!(own == *tokens, "other tokens than llama.cpp's for `{text}`");
        let exact = plain.log_probabilities(tokens, single);
        for ((ours, llama), exact) in
            ours.log_probabilities(tokens, half).iter().zip(log_probabilities).zip(exact)
        {
            ours_off += (ours - exact).powi(2);
            llama_off += (llama - exact).powi(2);
            count += 1;
        }
    }
    let root = |sum: f64| (sum / f64::from(count.max(1))).sqrt();
    say(&json!({ "tokens": count, "ours": root(ours_off), "llama_cpp": root(llama_off) }).to_string());
    Ok(())
}

fn load(path: &Path) -> Result<(Decoder, Tokenizer)> {
    let file = FileMap::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
    let gguf = Gguf::parse(file.as_bytes())?;
    let architecture = Architecture::of_gguf(&gguf.metadata, &gguf.tensors)?;
    Ok((Decoder::of_gguf(architecture, &gguf.tensors)?, Tokenizer::of_gguf(&gguf.metadata)?))
}

/// This thread on the first core, and one on each of the others.
fn team(cores: &[usize]) -> Result<Team> {
    let (first, others) = cores.split_first().context("`--cores` names none")?;
    let mut others = others.iter();
    let start = |helper: Helper| {
        let core = others.next().copied().ok_or_else(|| io::Error::other("no core is left"))?;
        let run = move || {
            confine_thread(CoreSet::from_cores([core])).expect("the core was asked for");
            helper();
        };
        std::thread::Builder::new().name(format!("team-{core}")).spawn(run).map(drop)
    };
    let team = Team::new(cores.len(), start)?;
    // After the helpers, which would inherit it.
    confine_thread(CoreSet::from_cores([*first]))?;
    Ok(team)
}

struct Timed<'a> {
    decoder: &'a Decoder,
    forward: Forward,
}

impl Timed<'_> {
    /// Tokens per second of one prompt, the second of two.
    fn prefill(&mut self, prompt: usize) -> f64 {
        let mut cache = Cache::new(self.decoder.cache_shape(PAGE_TOKENS));
        let pages: Vec<usize> = (0..prompt.div_ceil(PAGE_TOKENS)).map(|_| cache.add_page()).collect();
        let token = |position: usize| self.token(position, position, &pages, position + 1 == prompt);
        let tokens: Vec<Token<'_>> = (0..prompt).map(token).collect();
        self.forward.run(self.decoder, &mut cache, &tokens);
        let began = now();
        self.forward.run(self.decoder, &mut cache, &tokens);
        prompt as f64 / began.elapsed().as_secs_f64()
    }

    /// Tokens per second of all sequences together.
    fn decode(&mut self, sequences: usize, depth: usize, count: usize) -> f64 {
        let mut cache = Cache::new(self.decoder.cache_shape(PAGE_TOKENS));
        let mut add = || (0..(depth + count).div_ceil(PAGE_TOKENS)).map(|_| cache.add_page()).collect();
        let pages: Vec<Vec<usize>> = (0..sequences).map(|_| add()).collect();
        for (sequence, pages) in pages.iter().enumerate() {
            let token = |position| self.token(sequence + position, position, pages, false);
            let tokens: Vec<Token<'_>> = (0..depth).map(token).collect();
            self.forward.run(self.decoder, &mut cache, &tokens);
        }
        let began = now();
        for position in depth..depth + count {
            let mut tokens = Vec::with_capacity(sequences);
            for (sequence, pages) in pages.iter().enumerate() {
                tokens.push(self.token(sequence + position, position, pages, true));
            }
            self.forward.run(self.decoder, &mut cache, &tokens);
        }
        (sequences * count) as f64 / began.elapsed().as_secs_f64()
    }

    /// Of each token but the first, after those before it.
    fn log_probabilities(&mut self, tokens: &[u32], precision: Precision) -> Vec<f64> {
        let mut cache = Cache::new(CacheShape { precision, ..self.decoder.cache_shape(PAGE_TOKENS) });
        let pages: Vec<usize> = (0..tokens.len().div_ceil(PAGE_TOKENS)).map(|_| cache.add_page()).collect();
        let with = tokens.iter().enumerate();
        let token = |(position, token): (usize, &u32)| Token {
            token: *token,
            position,
            pages: &pages,
            wants_scores: true,
        };
        let all: Vec<Token<'_>> = with.map(token).collect();
        let scores = self.forward.run(self.decoder, &mut cache, &all);
        let of = |(row, token): (usize, &u32)| {
            let scores: Vec<f32> = scores.row(row).collect();
            f64::from(scores[*token as usize]) - log_total(&scores)
        };
        tokens[1..].iter().enumerate().map(of).collect()
    }

    /// Any token: what is computed does not depend on which.
    fn token<'a>(&self, seed: usize, position: usize, pages: &'a [usize], wants_scores: bool) -> Token<'a> {
        let token = (seed * 7_919 + 11) % self.decoder.architecture().vocabulary;
        Token { token: token as u32, position, pages, wants_scores }
    }
}

/// Bytes per second that the cores read together, the best of three times.
fn reading(cores: &[usize]) -> Result<f64> {
    let barrier = std::sync::Barrier::new(cores.len());
    // The threads take the time themselves: one more would have no core to see them begin.
    let read = |core: usize| -> io::Result<(u64, [(Instant, Instant); READS])> {
        confine_thread(CoreSet::from_cores([core]))?;
        let memory = vec![1_u64; READ_BYTES / 8];
        let mut sum = 0_u64;
        let times = [(); READS].map(|()| {
            barrier.wait();
            let began = now();
            // Eight sums side by side, which the compiler makes vectors of.
            let mut sums = [0_u64; 8];
            for eight in memory.as_chunks::<8>().0 {
                for (sum, number) in sums.iter_mut().zip(eight) {
                    *sum = sum.wrapping_add(*number);
                }
            }
            sum = sum.wrapping_add(std::hint::black_box(sums).iter().sum());
            (began, now())
        });
        Ok((sum, times))
    };
    let mut all = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = cores.iter().map(|core| scope.spawn(move || read(*core))).collect();
        for thread in threads {
            let (sum, times) = thread.join().ok().context("a reading thread panicked")??;
            ensure!(sum == (READS * (READ_BYTES / 8)) as u64, "memory was read wrongly");
            all.push(times);
        }
        Ok(())
    })?;
    let took = |round: usize| {
        let began = all.iter().map(|times| times[round].0).min()?;
        let ended = all.iter().map(|times| times[round].1).max()?;
        Some((ended - began).as_secs_f64())
    };
    let best = (0..READS).filter_map(took).fold(f64::INFINITY, f64::min);
    Ok((cores.len() * READ_BYTES) as f64 / best)
}

#[expect(clippy::disallowed_methods, reason = "a measuring program")]
fn now() -> Instant {
    Instant::now()
}

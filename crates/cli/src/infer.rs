//! `quadrant infer`: one request from files. What a file becomes depends on what the model takes: a picture
//! becomes channels, a text becomes token ids, a file becomes bytes; the answer is shown in the way that
//! fits, or raw.

mod inputs;
mod npy;
mod show;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::bench::api_key;
use crate::cache;
use crate::client::{Client, Wanted};
use crate::print::print;

pub(crate) use inputs::{Channels, file_bytes, picture, texts};
pub(crate) use show::{ctc_text, similarity, top_classes};

/// One request from files.
#[derive(Args, Debug)]
pub(crate) struct InferArgs {
    /// The model to ask.
    model: String,
    /// The server's HTTP address.
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "HOST:PORT")]
    address: String,
    /// The API key to show, or `@FILE` for a file that holds it.
    #[arg(long, value_name = "KEY", value_parser = api_key)]
    api_key: Option<String>,
    /// A picture (PNG or JPEG) for the model's picture input.
    #[arg(long, value_name = "FILE", group = "what")]
    image: Option<PathBuf>,
    /// Order of a picture's channels.
    #[arg(long, value_enum, default_value_t = Channels::Rgb)]
    channels: Channels,
    /// A text, tokenized for the model; give it more than once for more rows.
    #[arg(long, value_name = "TEXT", group = "what")]
    text: Vec<String>,
    /// The tokenizer for `--text`, a `tokenizer.json`; by default the one that `quadrant demo` fetched.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// A file whose bytes are the input.
    #[arg(long, value_name = "FILE", group = "what")]
    bytes: Option<PathBuf>,
    /// A tensor from a `.npy` file, as `FILE` or `INPUT=FILE`; once for each input.
    #[arg(long, value_name = "[INPUT=]FILE", group = "what")]
    npy: Vec<String>,
    /// How to show the answer.
    #[arg(long, value_enum, default_value_t = Show::Auto)]
    show: Show,
    /// Labels for `--show ctc`, one class a line; by default those that `quadrant demo` fetched.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
}

/// How to show an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Show {
    /// Classes for one row of scores, similarity for texts, else raw.
    Auto,
    /// Name, type, shape and first values of every output.
    Raw,
    /// The five best classes.
    Classes,
    /// Text read by a network with connectionist temporal classification.
    Ctc,
    /// Cosine similarity of the rows.
    Similarity,
}

/// Runs the command.
///
/// # Errors
/// What is wrong with the files, or what the server said.
pub(crate) fn run(args: &InferArgs) -> Result<()> {
    let client = Client::new(&args.address).with_key(args.api_key.as_deref());
    let metadata = client.metadata(&args.model)?;
    let (inputs, fitting) = if let Some(path) = &args.image {
        (vec![picture(&metadata, path, args.channels)?], Show::Raw)
    } else if !args.text.is_empty() {
        let tokenizer = cache::or_fetched(args.tokenizer.as_deref(), cache::TOKENIZER)?;
        (texts(&metadata, &tokenizer, &args.text)?, Show::Similarity)
    } else if let Some(path) = &args.bytes {
        (vec![file_bytes(&metadata, path)?], Show::Classes)
    } else if !args.npy.is_empty() {
        (npy::tensors(&metadata, &args.npy)?, Show::Raw)
    } else {
        bail!("say what to send: `--image`, `--text`, `--bytes` or `--npy`");
    };
    let show = if args.show == Show::Auto { fitting } else { args.show };
    let best = if show == Show::Classes { 5 } else { 0 };
    // One score for each class or one vector for each text is in the last output of two dimensions.
    let summary = metadata.outputs.iter().rev().find(|output| output.shape.len() == 2);
    let outputs = match (show, summary) {
        (Show::Classes | Show::Similarity, Some(output)) => std::slice::from_ref(output),
        _ => &metadata.outputs[..],
    };
    let wanted = |name: &String| Wanted { name: name.clone(), classes: best };
    let wanted: Vec<Wanted> = outputs.iter().map(|output| wanted(&output.name)).collect();
    let answer = client.infer(&args.model, &inputs, &wanted)?;
    let text = match show {
        Show::Classes => top_classes(&answer[0])?,
        Show::Similarity => similarity(&answer[0])?,
        Show::Ctc => {
            let labels = cache::or_fetched(args.labels.as_deref(), cache::OCR_KEYS)?;
            ctc_text(&answer[0], &std::fs::read_to_string(labels)?)?
        }
        Show::Auto | Show::Raw => show::raw(&answer),
    };
    print(&format!("{text}\n"));
    Ok(())
}

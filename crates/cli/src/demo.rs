//! `quadrant demo`: real models, fetched, served, and requests to paste. With `--self-test` it sends
//! the requests itself and ends.

mod bars;
mod repository;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use quadrant_fetch::{MAGIKA, MINILM_L3, MINILM_L6, ONNX_RUNTIME, PP_OCR, SMOLLM2};

use crate::client::{Client, Wanted};
use crate::infer::{Channels, ctc_text, file_bytes, picture, similarity, texts, top_classes};
use crate::serve::{AddressArgs, After, Bound, serve};
use crate::settings::Settings;
use crate::{cache, chat};

/// Fetch real models, serve them, and print requests to paste.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Send the requests, show the answers, and end.
    #[arg(long)]
    self_test: bool,
    /// Only fetch what the demo needs.
    #[arg(long, conflicts_with = "self_test")]
    fetch_only: bool,
    #[command(flatten)]
    addresses: AddressArgs,
}

/// Two sentences that mean the same, and one that does not.
const SENTENCES: [&str; 3] =
    ["How do I share one GPU between models?", "Several models on a single GPU", "A recipe for apple pie"];

/// The text in the demo's picture.
const LINE: &str = "Many models, one device";

/// What this small language model knows, and what it can go on with.
const QUESTION: &str = "Name three colors.";
const PROMPT: &str = "The capital of France is";

/// Runs the demo.
///
/// # Errors
/// What could not be fetched, with what to do; or the request of the self-test that failed.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let store = cache::store()?;
    let packages = [&ONNX_RUNTIME, &MAGIKA, &PP_OCR, &MINILM_L3, &MINILM_L6, &SMOLLM2];
    store.fetch(&packages, &mut bars::Bars::new())?;
    if args.fetch_only {
        return Ok(());
    }
    let models_dir = repository::lay_out(&store).context("cannot lay out the demo's models")?;
    let mut settings = Settings::default();
    args.addresses.apply(&mut settings);
    let self_test = args.self_test;
    let picture = models_dir.join(repository::PICTURE);
    serve(&settings, &models_dir, |bound| async move {
        if self_test {
            let address = bound.http.to_string();
            // The client blocks; the server's own threads must not.
            tokio::task::spawn_blocking(move || try_out(&address, &picture)).await??;
            return Ok(After::End);
        }
        invite(bound, &picture);
        Ok(After::GoOn)
    })
}

/// Prints the requests to paste.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn invite(bound: Bound, picture: &std::path::Path) {
    let program = program();
    let address =
        if bound.http.port() == 8000 { String::new() } else { format!(" --address {}", bound.http) };
    let [first, second, third] = SENTENCES;
    println!(
        "\nThe demo is ready. Paste into another terminal:\n\n\
         # what type of file is this? (Magika)\n\
         {program} infer magika{address} --bytes {program}\n\n\
         # what does this picture say? (PP-OCR)\n\
         {program} infer ppocr-rec{address} --show ctc --channels bgr --image {}\n\n\
         # which sentences mean the same? (MiniLM)\n\
         {program} infer minilm-l3{address} --text \"{first}\" --text \"{second}\" --text \"{third}\"\n\n\
         # a conversation, as it comes (SmolLM2)\n\
         {program} chat{address} \"{QUESTION}\"\n\n\
         # a text continued, by any client of OpenAI's (SmolLM2)\n\
         curl -N http://{}/v1/completions -d '{{\"model\":\"smollm2\",\"prompt\":\"{PROMPT}\",\
         \"max_tokens\":24,\"temperature\":0,\"stream\":true}}'\n\n\
         Metrics: http://{}/metrics. Ctrl-C ends the demo.\n",
        picture.display(),
        bound.http,
        bound.metrics
    );
}

/// How this program was started, so that the printed requests can be pasted.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("quadrant"));
    let here = std::env::current_dir().unwrap_or_default();
    let short = path.strip_prefix(&here).map_or(path.clone(), std::path::Path::to_owned);
    short.display().to_string()
}

/// The requests, with what their answers must be.
fn try_out(address: &str, image: &std::path::Path) -> Result<()> {
    let client = Client::new(address);
    ensure!(client.is_ready(), "the server is not ready; a model may have failed to load, see above");
    let ask = |model: &str, inputs: &[_], output: &str, classes| -> Result<_> {
        let wanted = [Wanted { name: output.to_owned(), classes }];
        let mut answer = client.infer(model, inputs, &wanted).with_context(|| format!("asking `{model}`"))?;
        answer.pop().context("an answer without an output")
    };

    let program = std::env::current_exe().context("cannot find this program's file")?;
    let input = file_bytes(&client.metadata("magika")?, &program)?;
    let classes = top_classes(&ask("magika", &[input], "target_label", 3)?)?;
    show("this program is", &classes);
    ensure!(classes.lines().next().is_some_and(|best| best.ends_with("elf")), "Magika did not say `elf`");

    let input = picture(&client.metadata("ppocr-rec")?, image, Channels::Bgr)?;
    let keys = std::fs::read_to_string(cache::or_fetched(None, cache::OCR_KEYS)?)?;
    let text = ctc_text(&ask("ppocr-rec", &[input], "fetch_name_0", 0)?, &keys)?;
    show("the picture says", &text);
    ensure!(text == LINE, "PP-OCR did not read `{LINE}`");

    let tokenizer = cache::or_fetched(None, cache::TOKENIZER)?;
    let inputs = texts(&client.metadata("minilm-l3")?, &tokenizer, &SENTENCES.map(str::to_owned))?;
    let vectors = ask("minilm-l3", &inputs, "461", 0)?;
    show("text 1 against the others", &similarity(&vectors)?);

    let answer = chat::asked(address, QUESTION).context("asking `smollm2`")?;
    show("three colors are", &answer);
    ensure!(answer.contains("Red"), "SmolLM2 did not say `Red`");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn show(what: &str, answer: &str) {
    println!("{what}:\n{answer}\n");
}

//! `quadrant chat`: a conversation with a language model in the terminal, as its tokens come. One question as
//! an argument, or one a line.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::bench::api_key;

/// The demo's model.
const MODEL: &str = "smollm2";
/// How long the server may take to begin an answer.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of one line of an answer.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A conversation with a language model.
#[derive(Args, Debug)]
pub(crate) struct ChatArgs {
    /// What to ask; without it every line of the standard input is a question.
    prompt: Option<String>,
    /// The model to talk to.
    #[arg(long, short, default_value = MODEL)]
    model: String,
    /// The server's HTTP address.
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "HOST:PORT")]
    address: String,
    /// The API key to show, or `@FILE` for a file that holds it.
    #[arg(long, value_name = "KEY", value_parser = api_key)]
    api_key: Option<String>,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_tokens: u32,
    /// How freely tokens are chosen: 0 takes the likeliest, 2 is the most.
    #[arg(long, default_value_t = 0.7, value_name = "T")]
    temperature: f32,
}

/// Runs the command.
///
/// # Errors
/// What the server said, or that it cannot be reached.
pub(crate) fn run(args: &ChatArgs) -> Result<()> {
    let mut turns: Vec<Value> =
        args.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
    if let Some(prompt) = &args.prompt {
        return turn(args, &mut turns, prompt);
    }
    let stdin = std::io::stdin();
    let is_terminal = stdin.is_terminal();
    loop {
        if is_terminal {
            say("> ")?;
        }
        let mut line = String::new();
        if stdin.lock().read_line(&mut line).context("cannot read what you type")? == 0 {
            return Ok(());
        }
        if !line.trim().is_empty() {
            turn(args, &mut turns, line.trim())?;
        }
    }
}

/// The likeliest answer of the demo's model to one question.
///
/// # Errors
/// As [`run`].
pub(crate) fn asked(address: &str, question: &str) -> Result<String> {
    let args = ChatArgs {
        prompt: None,
        model: MODEL.to_owned(),
        address: address.to_owned(),
        api_key: None,
        system: None,
        max_tokens: 32,
        temperature: 0.0,
    };
    ask(&args, &[json!({"role": "user", "content": question})], &mut |_| Ok(()))
}

/// Asks, shows the answer as it comes, and remembers both.
fn turn(args: &ChatArgs, turns: &mut Vec<Value>, prompt: &str) -> Result<()> {
    turns.push(json!({"role": "user", "content": prompt}));
    let answer = ask(args, turns, &mut say)?;
    say("\n")?;
    turns.push(json!({"role": "assistant", "content": answer}));
    Ok(())
}

/// Sends a conversation and hands each piece of the answer to `show`. Gives the whole of it.
fn ask(args: &ChatArgs, turns: &[Value], show: &mut dyn FnMut(&str) -> Result<()>) -> Result<String> {
    let config = ureq::Agent::config_builder()
        .timeout_recv_response(Some(TIMEOUT))
        .http_status_as_error(false)
        .build();
    let agent: ureq::Agent = config.into();
    let body = json!({
        "model": args.model,
        "messages": turns,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "stream": true,
    });
    let request = agent.post(format!("http://{}/v1/chat/completions", args.address));
    let request = match &args.api_key {
        Some(key) => request.header("Authorization", format!("Bearer {key}")),
        None => request,
    };
    let unreachable = || format!("cannot reach a server at `{}`; `quadrant demo` starts one", args.address);
    let mut response = request.send(body.to_string()).with_context(unreachable)?;
    let status = response.status();
    let mut lines = BufReader::new(response.body_mut().as_reader());
    let mut answer = String::new();
    loop {
        let mut line = String::new();
        let length = std::io::Read::take(&mut lines, LINE_BYTES_MAX).read_line(&mut line);
        if length.context("the answer was cut off")? == 0 {
            ensure!(status == 200, "the server answered {status}");
            return Ok(answer);
        }
        let line = line.trim_end();
        let data = line.strip_prefix("data: ").unwrap_or(line);
        if data == "[DONE]" {
            return Ok(answer);
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else { continue };
        if let Some(message) = event["error"]["message"].as_str() {
            bail!("{message}");
        }
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            show(text)?;
            answer.push_str(text);
        }
    }
}

/// Prints a piece of an answer at once.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot print the answer")
}

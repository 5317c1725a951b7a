//! `quadrant explain`: why a request took as long as it did, asked of a running server.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::tenant;

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Say why a request took as long as it did.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// The request's number, which its answer carries as the header `x-quadrant-request`. Without it, the
    /// slowest requests of the last minutes are shown.
    #[arg(value_name = "REQUEST_ID")]
    request: Option<u64>,
    /// Where the server's metrics are.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8002")]
    metrics_address: String,
    /// Only the slowest of this tenant, after what it may have and what it uses of it.
    #[arg(long, value_name = "NAME", conflicts_with = "request")]
    tenant: Option<String>,
    /// How many of the slowest to show.
    #[arg(long, default_value_t = 5, value_name = "N")]
    count: usize,
    /// Print what the server said, as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Explanation {
    request: u64,
    model: String,
    tenant: Option<String>,
    outcome: String,
    reason: Option<String>,
    total_ms: f64,
    objective_ms: Option<f64>,
    parse_ms: f64,
    queue_ms: f64,
    gather_ms: Option<f64>,
    compute_ms: Option<f64>,
    scatter_ms: Option<f64>,
    step: Option<Step>,
    generation: Option<Generation>,
    waited_for: Vec<Overlap>,
    beside: Vec<Overlap>,
    preempted_by: Vec<Overlap>,
}

#[derive(Debug, Deserialize)]
struct Step {
    rows: u32,
    batch_mates: u32,
    width: usize,
    cores: String,
    class: String,
    predicted_ms: f64,
    real_ms: f64,
}

#[derive(Debug, Deserialize)]
struct Generation {
    prompt_tokens: u32,
    known_tokens: u32,
    tokens: u32,
    steps: u32,
    steps_ms: f64,
    preempted: u32,
    first_token_ms: Option<f64>,
    longest_gap_ms: Option<f64>,
    #[serde(default)]
    longest_gap_for: Vec<Overlap>,
}

#[derive(Debug, Deserialize)]
struct Overlap {
    model: String,
    steps: u32,
    ms: f64,
}

/// Asks the server and shows its answer.
///
/// # Errors
/// If it cannot be reached or does not remember the request.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn run(args: &ExplainArgs) -> Result<()> {
    let which = match (args.request, &args.tenant) {
        (Some(number), _) => number.to_string(),
        (None, Some(tenant)) => format!("slowest?tenant={}", encoded(tenant)),
        (None, None) => "slowest".to_owned(),
    };
    let text = fetch(&args.metrics_address, &format!("/requests/{which}"))?;
    if args.json {
        println!("{text}");
        return Ok(());
    }
    let explanations: Vec<Explanation> = match args.request {
        Some(_) => vec![serde_json::from_str(&text).context("an answer that is not understood")?],
        None => serde_json::from_str(&text).context("an answer that is not understood")?,
    };
    if let Some(name) = &args.tenant {
        let tenants = tenant::ask(&args.metrics_address)?;
        tenants.iter().filter(|tenant| tenant.is(name)).for_each(|tenant| print!("{tenant}"));
    }
    if explanations.is_empty() {
        println!("no such request has ended lately");
    }
    explanations.iter().take(args.count.max(1)).for_each(|explanation| print!("{}", describe(explanation)));
    Ok(())
}

/// A page of the port of the metrics.
///
/// # Errors
/// If there is no server, or what it said instead.
pub(crate) fn fetch(metrics_address: &str, path: &str) -> Result<String> {
    let url = format!("http://{metrics_address}{path}");
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let asked = agent.get(&url).call();
    let mut response = asked
        .with_context(|| format!("cannot ask `{metrics_address}`; give the server's `metrics_address`"))?;
    let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
    if response.status() != 200 {
        let said = serde_json::from_str::<serde_json::Value>(&text).ok();
        let said = said.as_ref().and_then(|said| said["error"].as_str()).unwrap_or(&text);
        bail!("{said}");
    }
    Ok(text)
}

/// A name as a part of a query.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().fold(String::new(), |text, byte| {
        if plain(byte) { text + &char::from(byte).to_string() } else { text + &format!("%{byte:02X}") }
    })
}

fn describe(explanation: &Explanation) -> String {
    let Explanation { request, model, outcome, total_ms, .. } = explanation;
    let mut text = format!("request {request} for {model}");
    let of = explanation.tenant.as_ref().map(|tenant| format!(" of {tenant}")).unwrap_or_default();
    write!(text, "{of}: {outcome} after {total_ms:.2} ms").expect("a string takes every text");
    let mut add = |line: String| text.push_str(&line);
    if let Some(reason) = &explanation.reason {
        add(format!(", {reason}"));
    }
    if let Some(objective) = explanation.objective_ms {
        add(format!(", wanted within {objective:.2} ms"));
    }
    add(format!("\n  parsing      {:>9.3} ms\n", explanation.parse_ms));
    add(format!(
        "  waiting      {:>9.3} ms{}\n",
        explanation.queue_ms,
        list(" for", &explanation.waited_for)
    ));
    let stages = [("gathering", explanation.gather_ms), ("computing", explanation.compute_ms)];
    for (name, time) in stages.into_iter().chain([("scattering", explanation.scatter_ms)]) {
        add(time.map(|time| format!("  {name:<12} {time:>9.3} ms\n")).unwrap_or_default());
    }
    if let Some(generation) = &explanation.generation {
        add(describe_generation(generation, &explanation.beside));
    }
    if let Some(step) = &explanation.step {
        let Step { rows, batch_mates, width, cores, class, predicted_ms, real_ms } = step;
        add(format!(
            "  its step     {real_ms:>9.3} ms, predicted {predicted_ms:.3}; {rows} rows with {batch_mates} other \
             requests, on {width} cores ({cores}), {class}\n"
        ));
        let disturbed = [("beside", &explanation.beside), ("preempted by", &explanation.preempted_by)];
        for (name, overlaps) in disturbed.into_iter().filter(|(_, overlaps)| !overlaps.is_empty()) {
            add(format!("  {name:<12} {}\n", list("", overlaps).trim_start()));
        }
    }
    text
}

fn describe_generation(generation: &Generation, others: &[Overlap]) -> String {
    let Generation { prompt_tokens, known_tokens, tokens, steps, steps_ms, preempted, .. } = generation;
    let known = if *known_tokens > 0 { format!(", {known_tokens} of them known") } else { String::new() };
    let mut text = match generation.first_token_ms {
        Some(first) => {
            format!("  first token  {first:>9.3} ms, of a prompt of {prompt_tokens} tokens{known}\n")
        }
        None => format!("  no token     of a prompt of {prompt_tokens} tokens{known}\n"),
    };
    text += &format!(
        "  its steps    {steps_ms:>9.3} ms, {steps} for {tokens} tokens{}\n",
        list("; meanwhile", others)
    );
    if let Some(gap) = generation.longest_gap_ms {
        let reasons = list(" for", &generation.longest_gap_for);
        text += &format!("  longest gap  {gap:>9.3} ms between two tokens{reasons}\n");
    }
    if *preempted > 0 {
        text += &format!("  preempted    {preempted} times: its keys and values made room for others'\n");
    }
    text
}

fn list(before: &str, overlaps: &[Overlap]) -> String {
    let mut text = String::new();
    for (index, Overlap { model, steps, ms }) in overlaps.iter().take(6).enumerate() {
        let separator = if index == 0 { before } else { "," };
        let plural = if *steps == 1 { "" } else { "s" };
        write!(text, "{separator} {steps} step{plural} of {model} ({ms:.2} ms)")
            .expect("a string takes every text");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_generation_the_tokens_are_told() {
        let explanation: Explanation = serde_json::from_str(
            r#"{"request":9,"model":"smollm2","outcome":"completed","total_ms":400.0,"parse_ms":0.1,"queue_ms":8.0,
            "generation":{"prompt_tokens":100,"known_tokens":64,"tokens":12,"steps":13,"steps_ms":250.0,
            "preempted":1,"first_token_ms":60.0,"longest_gap_ms":95.5,
            "longest_gap_for":[{"model":"smollm2","steps":1,"ms":90.0}]},
            "waited_for":[],"beside":[{"model":"magika","steps":2,"ms":9.0}],"preempted_by":[]}"#,
        )
        .unwrap();
        let text = describe(&explanation);
        for part in [
            "first token     60.000 ms, of a prompt of 100 tokens, 64 of them known",
            "its steps      250.000 ms, 13 for 12 tokens; meanwhile 2 steps of magika (9.00 ms)",
            "longest gap     95.500 ms between two tokens for 1 step of smollm2 (90.00 ms)",
            "preempted    1 times",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
    }

    #[test]
    fn an_explanation_reads_well() {
        let explanation: Explanation = serde_json::from_str(
            r#"{"request":7,"model":"magika","tenant":"gold","outcome":"completed","total_ms":12.5,"objective_ms":30.0,
            "parse_ms":0.1,"queue_ms":8.0,"gather_ms":0.01,"compute_ms":4.0,"scatter_ms":0.0,
            "step":{"step":3,"rows":2,"batch_mates":1,"width":1,"cores":"0","class":"preemptible",
            "predicted_ms":3.5,"real_ms":4.1},"waited_for":[{"model":"det","steps":1,"ms":8.0}],
            "beside":[],"preempted_by":[{"model":"vad","steps":2,"ms":0.4}]}"#,
        )
        .unwrap();
        let text = describe(&explanation);
        for part in [
            "request 7 for magika of gold: completed after 12.50 ms, wanted within 30.00 ms",
            "waiting          8.000 ms for 1 step of det (8.00 ms)",
            "predicted 3.500; 2 rows with 1 other requests, on 1 cores (0), preemptible",
            "preempted by 2 steps of vad (0.40 ms)",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
    }
}

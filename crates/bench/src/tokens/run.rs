//! A run of completions: sends each at its time, or the next when the last was answered, and counts.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use tokio::task::{JoinSet, LocalSet};

use super::report::{Counted, Progress, TokenReport};
use super::stream::complete;
use super::{Lengths, TokenArrivals, TokenPlan};
use crate::clock::Clock;
use crate::machine::MachineTime;
use crate::run::is_of_load;
use crate::{BenchError, Length};

/// Tokens that prompts are made of: words and parts of words in every vocabulary of 32,000 and more.
const TOKENS: std::ops::Range<u32> = 1_000..20_000;
/// The first request is this long.
const FIRST: Lengths = Lengths { prompt: 4, new: 2 };

/// Runs the plan to its end on this thread. `progress` is told when requests end: how many did, and how many
/// failed.
///
/// # Errors
/// If the plan makes no sense, or the server does not answer a first, short request.
pub fn run_tokens(
    plan: TokenPlan,
    progress: impl Fn(usize, usize) + 'static,
) -> Result<TokenReport, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| BenchError::File { path: "runtime".to_owned(), source })?;
    LocalSet::new().block_on(&runtime, run_on(Rc::new(plan), Box::new(progress)))
}

async fn run_on(plan: Rc<TokenPlan>, progress: Progress) -> Result<TokenReport, BenchError> {
    try_first(&plan).await?;
    let clock = Clock::new();
    let counted = Rc::new(RefCell::new(Counted::new(&plan, progress)));
    let machine = MachineTime::read();
    let mut running = JoinSet::new();
    match &plan.arrivals {
        TokenArrivals::Open(requests, _) => {
            for (index, (at, lengths)) in requests.iter().enumerate() {
                let wait = at.saturating_sub(clock.now());
                tokio::time::sleep(wait).await;
                running.spawn_local(one(
                    Rc::clone(&plan),
                    Rc::clone(&counted),
                    clock,
                    (index, *at, *lengths),
                ));
                if counted.borrow().is_lost() {
                    break;
                }
            }
        }
        TokenArrivals::Closed(at_a_time, lengths, length) => {
            let next = Rc::new(RefCell::new(0_usize));
            for _ in 0..*at_a_time {
                let (plan, counted, next) = (Rc::clone(&plan), Rc::clone(&counted), Rc::clone(&next));
                let (lengths, length) = (*lengths, *length);
                running.spawn_local(async move {
                    loop {
                        let (index, now) = (*next.borrow(), clock.now());
                        let goes_on = match length {
                            Length::Requests(count) => (index as u64) < count,
                            Length::For(time) => now < plan.warmup + time,
                        };
                        if !goes_on {
                            return;
                        }
                        *next.borrow_mut() += 1;
                        one(Rc::clone(&plan), Rc::clone(&counted), clock, (index, now, lengths)).await;
                    }
                });
            }
        }
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
        if counted.borrow().is_lost() {
            running.abort_all();
        }
    }
    let steal_percent = MachineTime::read().steal_percent_since(machine);
    let report = counted.borrow().report(&plan, clock.now(), steal_percent);
    Ok(report)
}

/// One short request that nobody waits for, so that a mistake shows before the load.
async fn try_first(plan: &TokenPlan) -> Result<(), BenchError> {
    let plan = TokenPlan { first: None, each: None, ..plan.clone() };
    match complete(&plan.address, request(&plan, u64::MAX, FIRST)?, Clock::new()).await {
        Err(said) if !is_of_load(&said) => Err(BenchError::Server { address: plan.address, said }),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Sends one request, and counts what became of it.
async fn one(
    plan: Rc<TokenPlan>,
    counted: Rc<RefCell<Counted>>,
    clock: Clock,
    (index, at, lengths): (usize, Duration, Lengths),
) {
    let request = request(&plan, index as u64, lengths);
    let lag = clock.now().saturating_sub(at);
    let answer = match request {
        Ok(request) => complete(&plan.address, request, clock).await,
        Err(error) => Err(error.to_string()),
    };
    counted.borrow_mut().ended((index, at, lag), answer);
}

/// The request of this number.
fn request(plan: &TokenPlan, index: u64, lengths: Lengths) -> Result<Request<Full<Bytes>>, BenchError> {
    let mut shared = fastrand::Rng::with_seed(plan.seed);
    let mut own =
        fastrand::Rng::with_seed(plan.seed ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let token = |position| if position < plan.shared_prefix { shared.u32(TOKENS) } else { own.u32(TOKENS) };
    let prompt: Vec<u32> = (0..lengths.prompt).map(token).collect();
    let mut body = json!({
        "model": plan.model, "prompt": prompt, "max_tokens": lengths.new, "temperature": 0.0, "ignore_eos": true,
        "stream": true, "stream_options": { "include_usage": true },
    });
    if plan.uncached {
        body["cache_salt"] = json!(format!("{}-{index}", plan.seed));
    }
    let mut request = Request::post("/v1/completions")
        .header("host", &plan.address)
        .header("content-type", "application/json");
    for (name, time) in [("x-slo-ttft-ms", plan.first), ("x-slo-tpot-ms", plan.each)] {
        if let Some(time) = time {
            request = request.header(name, time.as_millis().to_string());
        }
    }
    if let Some(key) = &plan.api_key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(Full::new(Bytes::from(body.to_string())));
    request.map_err(|error| BenchError::Plan(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_the_prefix_and_nothing_else_in_common() {
        let plan = TokenPlan {
            address: "x:1".to_owned(),
            model: "m".to_owned(),
            arrivals: TokenArrivals::Open(Vec::new(), Duration::ZERO),
            shared_prefix: 3,
            uncached: false,
            warmup: Duration::ZERO,
            first: Some(Duration::from_secs(2)),
            each: None,
            attainment_min: None,
            api_key: None,
            seed: 7,
        };
        let prompt = |index| {
            let lengths = Lengths { prompt: 6, new: 1 };
            let request = request(&plan, index, lengths).unwrap();
            assert_eq!(request.headers()["x-slo-ttft-ms"], "2000");
            let body = futures_body(request);
            body["prompt"].as_array().unwrap().clone()
        };
        let (one, other) = (prompt(0), prompt(1));
        assert_eq!(one, prompt(0));
        assert_eq!((one.len(), &one[..3]), (6, &other[..3]));
        assert_ne!(one[3..], other[3..]);
    }

    fn futures_body(request: Request<Full<Bytes>>) -> serde_json::Value {
        use http_body_util::BodyExt;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(request.into_body().collect()).unwrap().to_bytes();
        serde_json::from_slice(&bytes).unwrap()
    }
}

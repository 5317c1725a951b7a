//! What is to be sent, how, when and for how long.

use std::time::Duration;

use crate::BenchError;
use crate::payload::TensorSpec;

/// How the server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The Open Inference Protocol over HTTP/1.1.
    Http,
    /// The same over gRPC.
    Grpc,
}

/// How tensors travel over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// After the JSON, as they are.
    Binary,
    /// Within the JSON.
    Json,
}

/// When requests are sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// So many connections, each sending its next request when it has the answer to the last.
    Closed {
        /// Connections.
        concurrency: usize,
    },
    /// At even intervals.
    Constant {
        /// Requests per second.
        rate: f64,
    },
    /// At exponentially distributed intervals.
    Poisson {
        /// Requests per second in the mean.
        rate: f64,
    },
    /// At given times after the start, in milliseconds, ascending; repeated until the run ends.
    Trace {
        /// The times.
        times_ms: Vec<f64>,
        /// Which model each is for, as an index into the mix; drawn by weight if empty.
        models: Vec<usize>,
        /// How many times faster than recorded.
        speed: f64,
    },
}

/// How long to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// For this time.
    For(Duration),
    /// So many requests.
    Requests(u64),
}

/// One model of the mix.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelLoad {
    /// Its name.
    pub name: String,
    /// Its share of the requests, relative to the other models'.
    pub weight: f64,
    /// Its inputs; what is missing is asked of the server's metadata.
    pub inputs: Vec<TensorSpec>,
    /// The output to ask for, reduced to so many best classes; all outputs in full if `None`.
    pub classification: Option<(String, usize)>,
    /// By when an answer counts as in time, from its intended sending. Not sent.
    pub objective: Option<Duration>,
}

/// A run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// How the server is spoken to.
    pub protocol: Protocol,
    /// `HOST:PORT`.
    pub address: String,
    /// The models.
    pub mix: Vec<ModelLoad>,
    /// How tensors travel over HTTP.
    pub encoding: Encoding,
    /// When requests are sent.
    pub arrivals: Arrivals,
    /// How long to send, without the warm-up.
    pub length: Length,
    /// How long to send before counting.
    pub warmup: Duration,
    /// The most requests on their way at once in an open loop; what would be more is withheld and counted.
    pub outstanding_max: usize,
    /// Sent with every request: how long its answer is of use.
    pub timeout: Option<Duration>,
    /// Sent with every request over HTTP: on whose account it is.
    pub tenant: Option<String>,
    /// Sent with every request: the API key.
    pub api_key: Option<String>,
    /// Whether each model is asked once before the run, so that a mistake shows before the load.
    pub tries_first: bool,
    /// Seed of arrivals, of the mix and of generated inputs.
    pub seed: u64,
}

impl Plan {
    /// Whether the plan makes sense.
    ///
    /// # Errors
    /// The first thing that does not.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let fail = |reason: &str| Err(BenchError::Plan(reason.to_owned()));
        if self.mix.is_empty() {
            return fail("name at least one model");
        }
        if !self.mix.iter().all(|model| model.weight.is_finite() && model.weight > 0.0) {
            return fail("a model's weight must be above 0");
        }
        let good_rate = |rate: f64| rate.is_finite() && rate > 0.0 && rate <= 1e6;
        match &self.arrivals {
            Arrivals::Closed { concurrency } if !(1..=10_000).contains(concurrency) => {
                fail("`concurrency` must be from 1 to 10000")
            }
            Arrivals::Constant { rate } | Arrivals::Poisson { rate } if !good_rate(*rate) => {
                fail("`rate` must be above 0 and at most 1000000 per second")
            }
            Arrivals::Trace { times_ms, .. } if times_ms.is_empty() => fail("the trace has no arrivals"),
            Arrivals::Trace { times_ms, models, .. }
                if !models.is_empty() && models.len() != times_ms.len() =>
            {
                fail("every arrival of a trace needs a model, or none")
            }
            Arrivals::Trace { models, .. } if models.iter().any(|model| *model >= self.mix.len()) => {
                fail("the trace names a model that is not in the mix")
            }
            Arrivals::Trace { speed, .. } if !good_rate(*speed) => fail("`speed` must be above 0"),
            Arrivals::Closed { .. }
            | Arrivals::Constant { .. }
            | Arrivals::Poisson { .. }
            | Arrivals::Trace { .. } => match self.length {
                Length::Requests(0) | Length::For(Duration::ZERO) => fail("a run must have a length"),
                Length::Requests(_) | Length::For(_) => Ok(()),
            },
        }
    }
}

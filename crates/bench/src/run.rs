//! A run: connections, a pacer, and the counting.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::connection::{Connection, Outcome};
use crate::machine::MachineTime;
use crate::metadata;
use crate::payload::Prepared;
use crate::plan::{Arrivals, Length};
use crate::record::Record;
use crate::report::{LatencyMs, Report, Snapshot, void};
use crate::schedule::Schedule;
use crate::{BenchError, Plan, Protocol};

/// A 99th percentile of the send lag above this makes a run void.
const LAG_MS_MAX: f64 = 1.0;
/// How long answers may still come in after the last request was sent.
const LINGER: Duration = Duration::from_secs(30);
/// How often progress is told.
const INTERVAL: Duration = Duration::from_secs(1);

/// Runs the plan to its end on this thread, telling `progress` once a second.
///
/// # Errors
/// If the plan makes no sense, or the server does not answer a first request of each model, if it is to.
pub fn run(plan: Plan, progress: impl FnMut(Snapshot)) -> Result<Report, BenchError> {
    plan.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| BenchError::File { path: "runtime".to_owned(), source })?;
    runtime.block_on(run_on(plan, progress))
}

/// What all tasks of a run share.
struct Shared {
    plan: Plan,
    requests: Vec<Prepared>,
    /// Cumulated weights, for drawing a model.
    weights: Vec<f64>,
    clock: Clock,
    /// When counting begins and ends.
    from: Duration,
    until: Option<Duration>,
    record: Mutex<Record>,
    /// Requests still to be sent, where their number is given.
    left: Mutex<Option<u64>>,
    idle: Mutex<Vec<Connection>>,
    outstanding: Mutex<usize>,
}

async fn run_on(mut plan: Plan, mut progress: impl FnMut(Snapshot)) -> Result<Report, BenchError> {
    metadata::complete(&mut plan).await?;
    let requests = plan.mix.iter().map(|model| Prepared::new(&plan, model)).collect::<Result<Vec<_>, _>>()?;
    if plan.tries_first {
        try_each(&plan, &requests, Clock::new()).await?;
    }
    let clock = Clock::new();
    let (until, left) = match plan.length {
        Length::For(time) => (Some(plan.warmup + time), None),
        Length::Requests(count) => (None, Some(count)),
    };
    let weights = plan.mix.iter().scan(0.0, |sum, model| {
        *sum += model.weight;
        Some(*sum)
    });
    let shared = Arc::new(Shared {
        weights: weights.collect(),
        requests,
        clock,
        from: plan.warmup,
        until,
        record: Mutex::new(Record::new(&plan.mix.iter().map(|model| model.objective).collect::<Vec<_>>())),
        left: Mutex::new(left),
        idle: Mutex::new(Vec::new()),
        outstanding: Mutex::new(0),
        plan,
    });
    let machine = MachineTime::read();
    let telling = async {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let elapsed = shared.clock.now().saturating_sub(shared.from);
            if !elapsed.is_zero() {
                progress(lock(&shared.record).snapshot(elapsed, INTERVAL));
            }
        }
    };
    tokio::select! {
        () = telling => unreachable!("progress is told until the run is over"),
        result = send_all(&shared) => result?,
    }
    let ended = shared.clock.now();
    let counted = shared.until.unwrap_or(ended).saturating_sub(shared.from);
    Ok(report(&shared, counted, MachineTime::read().steal_percent_since(machine)))
}

/// One request of each model, so that a mistake shows before the load.
async fn try_each(plan: &Plan, requests: &[Prepared], clock: Clock) -> Result<(), BenchError> {
    let mut connection = Connection::open(plan, clock).await?;
    for (model, request) in plan.mix.iter().zip(requests) {
        if let Outcome::Failed(reason) | Outcome::Refused(reason, _) = connection.send(request, clock).await
            && !is_of_load(&reason)
        {
            let said = format!("answered a first request for `{}` with `{reason}`", model.name);
            return Err(BenchError::Server { address: plan.address.clone(), said });
        }
    }
    Ok(())
}

/// Whether a refusal speaks of the load that the server is under, which is no mistake of the caller's.
pub(crate) fn is_of_load(reason: &str) -> bool {
    let status = reason.split(' ').next().unwrap_or_default();
    ["429", "504", "ResourceExhausted", "DeadlineExceeded"].contains(&status)
}

async fn send_all(shared: &Arc<Shared>) -> Result<(), BenchError> {
    match (&shared.plan.arrivals, Schedule::new(&shared.plan)) {
        (Arrivals::Closed { concurrency }, _) => closed_loop(shared, *concurrency).await,
        (_, Some(schedule)) => open_loop(shared, schedule).await,
        (_, None) => Ok(()),
    }
}

async fn closed_loop(shared: &Arc<Shared>, concurrency: usize) -> Result<(), BenchError> {
    let mut tasks = Vec::new();
    for index in 0..concurrency {
        let mut connection = Connection::open(&shared.plan, shared.clock).await?;
        let shared = Arc::clone(shared);
        let mut random = fastrand::Rng::with_seed(shared.plan.seed.wrapping_add(index as u64));
        tasks.push(tokio::spawn(async move {
            while shared.goes_on() {
                let model = shared.draw(&mut random);
                let began = shared.clock.now();
                shared.one(&mut connection, model, began).await;
                if !connection.is_usable() {
                    match Connection::open(&shared.plan, shared.clock).await {
                        Ok(fresh) => connection = fresh,
                        Err(_) => return,
                    }
                }
            }
        }));
    }
    for task in tasks {
        // A task that panicked has printed why; its requests are missing from the counts.
        task.await.unwrap_or_default();
    }
    Ok(())
}

/// A thread keeps the time, because a runtime's timers tick in milliseconds.
async fn open_loop(shared: &Arc<Shared>, schedule: Schedule) -> Result<(), BenchError> {
    let (tickets, mut due) = mpsc::channel::<(Duration, Option<usize>)>(1 << 16);
    let pacer = Arc::clone(shared);
    let pacer = thread::spawn(move || {
        for (at, model) in schedule {
            if !pacer.goes_on_at(at) {
                return;
            }
            loop {
                let now = pacer.clock.now();
                if now >= at {
                    break;
                }
                thread::park_timeout(at - now);
            }
            // Full means that the generator itself is far behind; the lag will say so.
            if tickets.blocking_send((at, model)).is_err() {
                return;
            }
        }
    });
    let mut random = fastrand::Rng::with_seed(shared.plan.seed ^ 0x9e37_79b9_7f4a_7c15);
    while let Some((at, model)) = due.recv().await {
        let model = model.unwrap_or_else(|| shared.draw(&mut random));
        if *lock(&shared.outstanding) >= shared.plan.outstanding_max {
            if shared.counts(at) {
                lock(&shared.record).withheld(model);
            }
            continue;
        }
        *lock(&shared.outstanding) += 1;
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            // Before any wait for a connection, which is the server's doing.
            if shared.counts(at) {
                lock(&shared.record).lagged(shared.clock.now().saturating_sub(at));
            }
            let connection = lock(&shared.idle).pop().filter(Connection::is_usable);
            let connection = match connection {
                Some(connection) => Ok(connection),
                None => Connection::open(&shared.plan, shared.clock).await,
            };
            if let Ok(mut connection) = connection {
                shared.one(&mut connection, model, at).await;
                lock(&shared.idle).push(connection);
            }
            *lock(&shared.outstanding) -= 1;
        });
    }
    let waited_from = shared.clock.now();
    while *lock(&shared.outstanding) > 0 && shared.clock.now() < waited_from + LINGER {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The pacer has ended, or the channel would still be open.
    pacer.join().unwrap_or_default();
    Ok(())
}

impl Shared {
    /// Sends one request and counts it from `began`, its intended time.
    async fn one(&self, connection: &mut Connection, model: usize, began: Duration) {
        let request = &self.requests[model];
        let outcome = connection.send(request, self.clock).await;
        let latency = self.clock.now().saturating_sub(began);
        if self.counts(began) {
            lock(&self.record).ended(model, request.bytes(), latency, outcome);
        }
    }

    /// Whether a request intended for this time is counted.
    fn counts(&self, at: Duration) -> bool {
        at >= self.from && self.until.is_none_or(|until| at < until)
    }

    /// Whether a request may be sent now; takes one off where their number is given.
    fn goes_on(&self) -> bool {
        self.goes_on_at(self.clock.now())
    }

    fn goes_on_at(&self, at: Duration) -> bool {
        if self.until.is_some_and(|until| at >= until) {
            return false;
        }
        let mut left = lock(&self.left);
        match left.as_mut() {
            Some(0) => false,
            Some(left) => {
                *left -= u64::from(at >= self.from);
                true
            }
            None => true,
        }
    }

    /// A model, by weight.
    fn draw(&self, random: &mut fastrand::Rng) -> usize {
        let point = random.f64() * self.weights.last().copied().unwrap_or(1.0);
        self.weights.partition_point(|sum| *sum <= point).min(self.weights.len() - 1)
    }
}

fn report(shared: &Shared, counted: Duration, steal_percent: f64) -> Report {
    let record = lock(&shared.record);
    let plan = &shared.plan;
    let seconds = counted.as_secs_f64().max(1e-9);
    let mut total = Record::new(&[None]).models.remove(0);
    record.models.iter().for_each(|model| total.merge(model));
    let (offered_per_second, concurrency) = match &plan.arrivals {
        Arrivals::Closed { concurrency } => (None, Some(*concurrency)),
        Arrivals::Constant { rate } | Arrivals::Poisson { rate } => (Some(*rate), None),
        Arrivals::Trace { times_ms, speed, .. } => {
            let span_s = times_ms.last().copied().unwrap_or(0.0) / 1e3 / speed;
            (Some(times_ms.len() as f64 / span_s.max(1e-3)), None)
        }
    };
    let send_lag_ms = LatencyMs::of(&record.lag);
    let lag_max = if offered_per_second.is_some() { LAG_MS_MAX } else { f64::INFINITY };
    let model =
        |(load, record): (&crate::ModelLoad, &crate::record::ModelRecord)| record.report(&load.name, seconds);
    Report {
        protocol: if plan.protocol == Protocol::Http { "http" } else { "grpc" }.to_owned(),
        offered_per_second,
        concurrency,
        seconds,
        total: total.report("all", seconds),
        models: plan.mix.iter().zip(&record.models).map(model).collect(),
        send_lag_ms,
        withheld: record.models.iter().map(|model| model.withheld()).sum(),
        steal_percent,
        void: void(steal_percent, send_lag_ms, lag_max),
        seed: plan.seed,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_server_is_no_mistake_and_an_unknown_model_is() {
        let of_load = ["429 deadline_unmeetable", "429", "504 expired", "ResourceExhausted"];
        assert!(of_load.into_iter().all(is_of_load));
        let mistakes = ["400 invalid", "404", "503 unavailable", "NotFound", "connection: 429", ""];
        assert!(!mistakes.into_iter().any(is_of_load));
    }
}

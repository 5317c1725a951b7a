//! The loop that turns what happens into events for the scheduler, and its actions into deeds.
//!
//! There is one scheduler and it handles one event at a time, but there is no thread for it: whoever
//! brings an event puts it into the inbox and, if nobody else is at work, works the inbox off ("flat
//! combining", Hendler et al., SPAA 2010). A request then crosses threads twice, to its lane and back,
//! instead of four times, and under load one thread works off what all brought. The order of the inbox is
//! the order of the events, so decisions stay reproducible.
//!
//! A lane that another lane's step can preempt only puts its report there, and the ticker's thread works it
//! off: it would start that step itself, and be preempted while it holds the scheduler.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use quadrant_engine::{Lane, LaneReport, LaneSink, Refusal, Refused, Runner};
use quadrant_policy::{Action, Event, Policy, Step};
use quadrant_types::{
    Clock, Error, ErrorCode, LaneId, ModelId, Reason, Request, RequestId, StepId, TenantId, Timing, Work,
};
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::message::{Message, Pending};
use crate::orders::{Order, Orders};
use crate::recorder::Recorder;
use crate::telemetry::Telemetry;
use crate::ticker::Ticker;
use crate::{ModelEntry, Response, Submission};

use ended::Ended;

mod ended;
mod generations;
mod reports;
mod shown;
mod steps;

/// Arrivals that may lie in the inbox unlooked at. Reports and departures always find room: there are
/// never more of them than steps and requests that were let in.
const INBOX_ARRIVALS_MAX: usize = 4_096;

/// The one owner of the scheduler's state. See the module's text.
pub(crate) struct Driver {
    clock: Arc<dyn Clock>,
    inbox: Mutex<VecDeque<Message>>,
    core: Mutex<Core>,
    ticker: Ticker,
    /// Lanes whose threads do not work the inbox off.
    preemptible: BTreeSet<LaneId>,
    telemetry: Arc<Telemetry>,
    /// What the loader is to do.
    pub(crate) orders: Orders,
    next_request: AtomicU64,
    draining: AtomicBool,
    lanes_stalled: AtomicBool,
    drained: OnceLock<()>,
    on_drained: Mutex<Option<oneshot::Sender<()>>>,
}

/// What only the thread that works the inbox off touches.
struct Core {
    policy: Policy,
    lanes: BTreeMap<LaneId, Lane>,
    pending: BTreeMap<RequestId, Pending>,
    steps: BTreeMap<StepId, Begun>,
    actions: Vec<Action>,
    /// Requests that have ended and were not told so yet.
    ended: Vec<Ended>,
    /// Requests whose readers do not keep up, and of whom the scheduler is yet to be told.
    stalled: Vec<RequestId>,
    recorder: Recorder,
}

/// A step on its lane.
struct Begun {
    model: Arc<ModelEntry>,
    step: Step,
    /// The name of the model beside it.
    beside: Option<Arc<str>>,
    /// On whose account how many of its rows are.
    accounts: SmallVec<[(TenantId, u32); 2]>,
}

impl Driver {
    /// `preemptible` are the lanes on whose cores another lane's step can preempt theirs.
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        policy: Policy,
        preemptible: BTreeSet<LaneId>,
        telemetry: Arc<Telemetry>,
    ) -> Arc<Self> {
        let core = Core {
            policy,
            lanes: BTreeMap::new(),
            pending: BTreeMap::new(),
            steps: BTreeMap::new(),
            actions: Vec::new(),
            ended: Vec::new(),
            stalled: Vec::new(),
            recorder: Recorder::default(),
        };
        Arc::new(Self {
            ticker: Ticker::new(),
            preemptible,
            clock,
            inbox: Mutex::new(VecDeque::new()),
            core: Mutex::new(core),
            telemetry,
            orders: Orders::default(),
            next_request: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            lanes_stalled: AtomicBool::new(false),
            drained: OnceLock::new(),
            on_drained: Mutex::new(None),
        })
    }

    /// Gives the driver its lanes, which need the driver to report to.
    pub(crate) fn adopt(&self, lanes: Vec<Lane>) {
        self.visit(|core| core.lanes = lanes.into_iter().map(|lane| (lane.spec().id, lane)).collect());
    }

    /// Gives a lane what it needs to run a model.
    pub(crate) fn install(
        &self,
        lane: LaneId,
        model: ModelId,
        runner: Box<dyn Runner>,
    ) -> Result<(), Refused<Box<dyn Runner>>> {
        self.visit(|core| match core.lanes.get(&lane) {
            Some(lane) => lane.install(model, runner),
            None => Err(Refused { reason: Refusal::Stopped, returned: runner }),
        })
    }

    /// Asks a lane to hand back what it has for a model.
    pub(crate) fn remove(&self, lane: LaneId, model: ModelId) -> Result<Receiver<Box<dyn Runner>>, Refusal> {
        self.visit(|core| core.lanes.get(&lane).map_or(Err(Refusal::Stopped), |lane| lane.remove(model)))
    }

    /// Waits for the core and does something with it that is no event. What came in meanwhile found the
    /// core taken, so it is worked off here.
    fn visit<T>(&self, visit: impl FnOnce(&mut Core) -> T) -> T {
        let result = visit(&mut lock(&self.core));
        self.work_off();
        result
    }

    pub(crate) fn submit(self: &Arc<Self>, submission: Submission) -> Result<Response, Error> {
        let id = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        let Submission { model, inputs, outputs, priority, tenant, objective, arrived } = submission;
        let objective = model.objective(arrived, objective);
        if let Some(hosted) = &model.hosted {
            hosted.refused.check(&inputs).inspect_err(|error| model.record_failure(error))?;
        }
        let (sender, answer) = oneshot::channel();
        let work = Work::Once {
            rows: model.rows(&inputs),
            shape: model.shapes.intern(&inputs, &outputs, model.batches),
            bytes_in: inputs.iter().map(|input| input.data.len() as u64).sum(),
        };
        let request = Request { id, model: model.id, tenant, priority, arrived, objective, work };
        let timing = Timing { arrived, submitted: self.clock.now(), ..Timing::default() };
        let pending = Box::new(Pending {
            request,
            model,
            inputs,
            outputs,
            answer: sender,
            timing,
            step: None,
            computed: None,
            generating: None,
        });
        self.put_in(pending)?;
        Ok(Response { id, answer, driver: Arc::clone(self), over: false })
    }

    /// Puts a request into the inbox, if there is room.
    fn put_in(&self, pending: Box<Pending>) -> Result<(), Error> {
        {
            let mut inbox = lock(&self.inbox);
            if inbox.len() >= INBOX_ARRIVALS_MAX {
                pending.model.metrics.failed(ErrorCode::ResourceExhausted);
                let full = format!("more than `{INBOX_ARRIVALS_MAX}` requests arrived at once");
                return Err(Error::new(ErrorCode::ResourceExhausted, full)
                    .retry_after(Duration::from_secs(1))
                    .because(Reason::ServerFull));
            }
            inbox.push_back(Message::Submit(pending));
        }
        self.work_off();
        Ok(())
    }

    pub(crate) fn leave(&self, id: RequestId) {
        self.post(Message::Leave(id));
    }

    /// Refuses new requests from now on. The receiver is told when the last accepted one has ended.
    pub(crate) fn drain(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        *lock(&self.on_drained) = Some(sender);
        self.draining.store(true, Ordering::Release);
        self.post(Message::Drain);
        if self.drained.get().is_some() {
            self.tell_drained();
        }
        receiver
    }

    /// Neither draining nor with a stalled lane.
    pub(crate) fn is_well(&self) -> bool {
        !self.draining.load(Ordering::Acquire) && !self.lanes_stalled.load(Ordering::Acquire)
    }

    /// Puts an event into the inbox, and sees to it that somebody works it off.
    pub(crate) fn post(&self, message: Message) {
        lock(&self.inbox).push_back(message);
        self.work_off();
    }

    /// Works the inbox off unless somebody is at it. Whoever was at it looks again after letting go, so an
    /// event that came in between is not left behind: the inbox's own lock orders the two looks. It lets go
    /// after each event that ended requests, because whoever is told of an answer may preempt the teller.
    fn work_off(&self) {
        loop {
            let mut core = match self.core.try_lock() {
                Ok(core) => core,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            while core.ended.is_empty() {
                let message = lock(&self.inbox).pop_front();
                let Some(message) = message else { break };
                self.handle(&mut core, message);
            }
            self.ticker.set(core.policy.next_deadline());
            let ended = std::mem::take(&mut core.ended);
            drop(core);
            ended.into_iter().for_each(Ended::tell);
            if lock(&self.inbox).is_empty() {
                return;
            }
        }
    }

    fn handle(&self, core: &mut Core, message: Message) {
        let event = match message {
            Message::Known(model, terms, holding) => Event::Known(model, terms, holding),
            Message::LoadWanted(model) => Event::LoadWanted(model),
            Message::UnloadWanted(model) => Event::UnloadWanted(model),
            Message::LoadEnded(model, result) => Event::LoadEnded(model, result),
            Message::Unloaded(model) => Event::Unloaded(model),
            Message::ModelDown(model) => Event::ModelDown(model),
            Message::Resident(bytes) => Event::Resident(bytes),
            Message::Tenant(tenant, terms) => Event::Tenant(tenant, terms),
            Message::Hosted(model, host) => Event::Hosted(model, host),
            Message::HostDown(host, back_at) => Event::HostDown(host, back_at),
            Message::HostUp(host, generation) => Event::HostUp(host, generation),
            Message::Submit(pending) => {
                let request = pending.request;
                let prefix = pending.generating.as_ref().map(|generating| Arc::clone(&generating.prefix));
                self.telemetry.accepted.inc();
                core.pending.insert(request.id, *pending);
                prefix.map_or(Event::Arrived(request), |prefix| Event::Sequence(request, prefix))
            }
            Message::Leave(id) => Event::Left(id),
            Message::ReaderReady(id) => Event::ReaderReady(id),
            Message::Report(report) => Event::Ended(self.take_report(core, report)),
            Message::Drain => Event::Drain,
            Message::Tick => Event::Tick,
        };
        let mut actions = std::mem::take(&mut core.actions);
        for stalled in std::mem::take(&mut core.stalled) {
            core.policy.on_event(self.clock.now(), Event::ReaderStalled(stalled), &mut actions);
        }
        core.policy.on_event(self.clock.now(), event, &mut actions);
        for action in actions.drain(..) {
            self.perform(core, action);
        }
        core.actions = actions;
    }

    fn perform(&self, core: &mut Core, action: Action) {
        match action {
            Action::Run(step) => self.run(core, step),
            Action::End(id, ending) => self.end(core, id, ending),
            Action::LaneStalled(lane, step) => {
                self.lanes_stalled.store(true, Ordering::Release);
                let model = core.steps.get(&step).map(|begun| &begun.model);
                self.telemetry.lane_stalled(lane, step, model.map(|model| &*model.spec.name));
                if let Some(hosted) = model.and_then(|model| model.hosted.as_ref()) {
                    hosted.host.kill_stalled();
                }
            }
            Action::LaneRecovered(lane) => {
                self.lanes_stalled.store(core.policy.stalled_lanes().next().is_some(), Ordering::Release);
                self.telemetry.lane_recovered(lane);
            }
            Action::Load(model) => self.orders.decided(Order::Load(model)),
            Action::Unload(model) => self.orders.decided(Order::Unload(model)),
            Action::LoadRefused(model, error) => self.orders.decided(Order::Refused(model, error)),
            Action::Drained => {
                // Set before it is told: whoever asks to be told after this asks first whether it is set.
                self.drained.get_or_init(|| ());
                self.tell_drained();
            }
        }
    }

    fn tell_drained(&self) {
        if let Some(sender) = lock(&self.on_drained).take() {
            // The one who asked may have given up waiting.
            sender.send(()).unwrap_or_default();
        }
    }

    /// Whether it was told to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.ticker.is_stopped()
    }

    /// Ends the lanes, giving each `patience` to finish its step.
    pub(crate) fn stop(&self, patience: Duration) {
        self.ticker.stop();
        self.orders.stop();
        let lanes = self.visit(|core| std::mem::take(&mut core.lanes));
        for (id, lane) in lanes {
            if !lane.stop(patience) {
                tracing::warn!(lane = id.0, "the lane did not end in time and is left behind");
            }
        }
        // The last reports of lanes that left that to the ticker.
        self.work_off();
    }

    /// Ticks whenever the scheduler asked to be woken; returns when the driver is stopped.
    pub(crate) fn run_ticker(&self) {
        while self.ticker.wait(&*self.clock) {
            // A panic has said what it is, and without ticks nothing would ever expire.
            drop(catch_unwind(AssertUnwindSafe(|| self.post(Message::Tick))));
        }
    }
}

impl LaneSink for Driver {
    fn report(&self, report: LaneReport) {
        let must_not_decide = self.preemptible.contains(&report.lane);
        lock(&self.inbox).push_back(Message::Report(report));
        if must_not_decide { self.ticker.rouse() } else { self.work_off() }
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

/// A panic while the lock was held is a bug that was reported where it happened; serving goes on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use quadrant_policy::{Discipline, LaneShape, Limits};
    use quadrant_types::{CoreSet, SchedulingClass};

    use super::*;
    use crate::MonotonicClock;
    use crate::tenants::Tenants;

    #[test]
    fn a_lane_that_can_be_preempted_leaves_its_report_to_the_ticker() {
        let clock = Arc::new(MonotonicClock::new());
        let shape =
            LaneShape { id: LaneId(7), cores: CoreSet::from_cores([0]), class: SchedulingClass::Idle };
        let policy = Policy::new(vec![shape], Limits::default(), Discipline::Quadrant);
        let telemetry = Arc::new(Telemetry::new(Arc::new(Tenants::default())));
        let driver = Driver::new(Arc::clone(&clock) as Arc<dyn Clock>, policy, [LaneId(7)].into(), telemetry);
        let now = clock.now();
        // A step that never began: whoever worked this off would panic.
        driver.report(LaneReport {
            step: StepId(1),
            lane: LaneId(7),
            began: now,
            gathered: now,
            computed: now,
            scattered: now,
            core_time: Duration::ZERO,
            result: Ok(Vec::new()),
        });
        assert_eq!(lock(&driver.inbox).len(), 1);
        assert!(driver.ticker.wait(&*clock), "it was roused");
    }
}

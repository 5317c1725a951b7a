//! Models whose engines run in a process of their own, which may end at any time: a *host*.
//!
//! While a host is away its models' requests stand aside: they neither run nor count as work to come, so
//! nobody else waits for them, and who could not be answered before it is back is refused at once. Of the
//! requests that were in it when it ended one may be to blame. They are tried one by one, with nothing else
//! in the host, before the others go on; one that is in it a second time, alone, ends with an error.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quadrant_types::{Ending, Error, ErrorCode, HostId, ModelId, Reason, Request, RequestId, Time};

use crate::admission::Plan;
use crate::running::Running;
use crate::{Action, Lost, Policy, Unmet};

/// The longest that requests stand aside for a host that is away; if it takes longer they are refused.
const ASIDE_MAX: Duration = Duration::from_secs(5);

/// All hosts, and which models run in which.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    of: BTreeMap<ModelId, HostId>,
    all: BTreeMap<HostId, Host>,
}

#[derive(Clone, Debug, Default)]
struct Host {
    /// When it should be back, while it is away.
    away_until: Option<Time>,
    /// Which of its processes is, or was last, up.
    generation: u64,
    /// Requests that wait to be tried, in the order of their arrival.
    suspects: BTreeSet<RequestId>,
    /// The one that is being tried.
    trial: Option<RequestId>,
    /// Requests that stand aside, with whether they are to run alone. Suspects are among them.
    aside: BTreeMap<RequestId, bool>,
}

impl Host {
    /// Whether requests must stand aside.
    fn is_held(&self) -> bool {
        self.away_until.is_some() || self.trial.is_some() || !self.suspects.is_empty()
    }
}

impl Hosts {
    fn of_model(&mut self, model: ModelId) -> Option<&mut Host> {
        self.all.get_mut(self.of.get(&model)?)
    }

    pub(crate) fn has(&self, model: ModelId) -> bool {
        self.of.contains_key(&model)
    }

    fn is_held(&self, model: ModelId) -> bool {
        self.of.get(&model).and_then(|host| self.all.get(host)).is_some_and(Host::is_held)
    }

    /// Requests that stand aside, of all models.
    pub(crate) fn aside(&self) -> usize {
        self.all.values().map(|host| host.aside.len()).sum()
    }

    /// Whether this request stands aside, and nowhere twice.
    pub(crate) fn is_aside(&self, model: ModelId, id: RequestId) -> bool {
        let host = self.of.get(&model).and_then(|host| self.all.get(host));
        host.is_some_and(|host| host.aside.contains_key(&id) && host.trial != Some(id))
    }
}

impl Policy {
    /// This model runs in that host from now on.
    pub(crate) fn hosted(&mut self, model: ModelId, host: HostId) {
        self.hosts.of.insert(model, host);
        self.hosts.all.entry(host).or_default();
    }

    /// Requests of this model that stand aside.
    pub(crate) fn aside(&self, model: ModelId) -> usize {
        let host = self.hosts.of.get(&model).and_then(|host| self.hosts.all.get(host));
        let is_of = |id: &&RequestId| self.live[*id].request.model == model;
        host.map_or(0, |host| host.aside.keys().filter(is_of).count())
    }

    /// The host is away. Everything of it stands aside.
    pub(crate) fn host_down(&mut self, now: Time, id: HostId, back_at: Time, actions: &mut Vec<Action>) {
        self.hosts.all.entry(id).or_default().away_until = Some(back_at);
        self.hold(id);
        let aside: Vec<RequestId> = self.hosts.all[&id].aside.keys().copied().collect();
        for request in aside {
            let live = self.live[&request];
            if let Err(error) = self.can_stand_aside(now, back_at, &live.request, &live.plan) {
                self.end(request, Ending::Failed(error), actions);
            }
        }
    }

    /// Lets everything that waits for the host stand aside.
    fn hold(&mut self, id: HostId) {
        let models: Vec<ModelId> =
            self.hosts.of.iter().filter(|(_, host)| **host == id).map(|(model, _)| *model).collect();
        for model in models {
            let Some(queue) = self.models.get(&model) else { continue };
            let waiting: Vec<_> =
                queue.waiting.iter().map(|(key, waiting)| (key.id, waiting.alone)).collect();
            for (request, alone) in waiting {
                self.dequeue(request, None);
                self.stand_aside(request, alone);
            }
        }
    }

    /// The host is back.
    pub(crate) fn host_up(&mut self, id: HostId, generation: u64) {
        let host = self.hosts.all.entry(id).or_default();
        host.generation = generation;
        host.away_until = None;
        self.go_on(id);
    }

    /// Has the next suspect tried; if there is none, lets everybody go on.
    fn go_on(&mut self, id: HostId) {
        let Some(host) = self.hosts.all.get_mut(&id) else { return };
        if host.away_until.is_some() || host.trial.is_some() {
            return;
        }
        if let Some(suspect) = host.suspects.first().copied() {
            // Whatever is in the host could be to blame as well.
            if !self.running.iter().any(|step| self.hosts.of.get(&step.model) == Some(&id)) {
                host.suspects.remove(&suspect);
                host.trial = Some(suspect);
                host.aside.remove(&suspect);
                self.return_to_queue(suspect, true);
            }
            return;
        }
        for (request, alone) in std::mem::take(&mut host.aside) {
            self.return_to_queue(request, alone);
        }
    }

    /// A step of this model is over; if it was in a host, the next suspect may have waited for that.
    pub(crate) fn after_step_of(&mut self, model: ModelId) {
        if let Some(host) = self.hosts.of.get(&model).copied() {
            self.go_on(host);
        }
    }

    fn return_to_queue(&mut self, id: RequestId, alone: bool) {
        self.live.get_mut(&id).expect("those that stand aside are live").aside = false;
        self.enqueue(id, alone);
    }

    /// Makes a live request of this model wait: in its queue, or aside while its host is held.
    pub(crate) fn wait(&mut self, model: ModelId, id: RequestId, alone: bool) {
        if self.hosts.is_held(model) {
            self.stand_aside(id, alone);
        } else {
            self.enqueue(id, alone);
        }
    }

    fn stand_aside(&mut self, id: RequestId, alone: bool) {
        let live = self.live.get_mut(&id).expect("only live requests wait");
        live.aside = true;
        let host = self.hosts.of_model(live.request.model).expect("its model has a host");
        host.aside.insert(id, alone);
        if host.trial == Some(id) {
            host.trial = None;
            host.suspects.insert(id);
        }
    }

    /// Forgets a request that ends, as far as its host is concerned; the next one may be tried then.
    pub(crate) fn forget_hosted(&mut self, id: RequestId, model: ModelId) {
        let Some(host_id) = self.hosts.of.get(&model).copied() else { return };
        let Some(host) = self.hosts.all.get_mut(&host_id) else { return };
        host.aside.remove(&id);
        let was_suspect = host.suspects.remove(&id);
        let was_tried = host.trial == Some(id);
        if was_tried {
            host.trial = None;
        }
        if was_suspect || was_tried {
            self.go_on(host_id);
        }
    }

    /// How a request is treated that arrives while its host is held; `None` if it is not.
    pub(crate) fn admit_aside(
        &self,
        now: Time,
        request: &Request,
        plan: &Plan,
    ) -> Result<Option<Plan>, Error> {
        let host = self.hosts.of.get(&request.model).and_then(|host| self.hosts.all.get(host));
        let Some(host) = host.filter(|host| host.is_held()) else { return Ok(None) };
        if let Some(back_at) = host.away_until {
            self.can_stand_aside(now, back_at, request, plan)?;
        }
        Ok(Some(*plan))
    }

    /// Refuses who could not be answered in time even if the host were back when it should be.
    fn can_stand_aside(&self, now: Time, back_at: Time, request: &Request, plan: &Plan) -> Result<(), Error> {
        let unmet = self.models.get(&request.model).map_or(Unmet::Refuse, |queue| queue.terms.unmet);
        let wanted = if unmet == Unmet::Refuse { plan.deadline.min(plan.expires) } else { plan.expires };
        let wait = back_at.since(now);
        if back_at < wanted && wait <= ASIDE_MAX {
            return Ok(());
        }
        let text = format!("the model's engine is being restarted and should be back in {wait:.1?}");
        Err(Error::new(ErrorCode::Unavailable, text).retry_after(wait).because(Reason::EngineAway))
    }

    /// The host ended under a step. Its requests are tried one by one, once; one that was alone is to blame.
    pub(crate) fn lost(&mut self, step: &Running, lost: &Lost, actions: &mut Vec<Action>) {
        let live: Vec<RequestId> =
            step.requests.iter().copied().filter(|id| self.live.contains_key(id)).collect();
        let Some(host_id) =
            self.hosts.of.get(&step.model).copied().filter(|_| self.models.contains_key(&step.model))
        else {
            return live.into_iter().for_each(|id| self.end(id, Ending::Failed(lost.error.clone()), actions));
        };
        let host = self.hosts.all.entry(host_id).or_default();
        // Until it says that it is back. A report may come so late that it already has.
        if lost.began && lost.generation >= host.generation && host.away_until.is_none() {
            host.away_until = Some(step.began);
        }
        let trial = host.trial;
        if lost.began {
            host.suspects.extend(live.iter().copied().filter(|id| trial != Some(*id)));
            self.hold(host_id);
        }
        for id in live {
            let request = self.live.get_mut(&id).expect("still live");
            request.step = None;
            let died_before = request.died;
            request.died |= lost.began;
            if lost.began && died_before && trial == Some(id) {
                let text = format!("this input ended the model's engine twice: {}", lost.error.message);
                let lethal = Error::invalid(text).because(Reason::Lethal);
                // It is in no queue, as if it still ran.
                self.live.get_mut(&id).expect("still live").step = Some(step.id);
                self.end(id, Ending::Failed(lethal), actions);
                continue;
            }
            self.wait(step.model, id, true);
        }
    }

    /// What stands aside of a model that is to run no more ends.
    pub(crate) fn unhost(&mut self, model: ModelId, error: &Error, actions: &mut Vec<Action>) {
        let Some(host) = self.hosts.of_model(model) else { return };
        let aside: Vec<RequestId> = host.aside.keys().copied().collect();
        for id in aside {
            if self.live[&id].request.model == model {
                self.end(id, Ending::Failed(error.clone()), actions);
            }
        }
    }
}

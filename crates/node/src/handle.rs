//! What the protocols see of the node: find a model, submit a request, wait for its answer.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quadrant_policy::TenantTerms;
use quadrant_types::{
    Clock, Error, ErrorCode, Objective, Priority, RequestId, StepId, TenantId, Tensor, Time, Timing,
};
use tokio::sync::oneshot;

use crate::driver::Driver;
use crate::message::Message;
use crate::orders::Wish;
use crate::registry::Registry;
use crate::telemetry::Telemetry;
use crate::tenants::{Tenant, TenantEntry, Tenants};
use crate::{Explanation, GenerationRequest, IndexEntry, ModelEntry, StepRecord, TokenStream};

/// A request with its payload, checked against the model's spec.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The model, from [`Handle::find`].
    pub model: Arc<ModelEntry>,
    /// One tensor for each input, in the spec's order.
    pub inputs: Arc<[Tensor]>,
    /// Which outputs are wanted, as indices into the spec's outputs, in the order they are wanted.
    pub outputs: Arc<[usize]>,
    /// How important it is.
    pub priority: Priority,
    /// On whose account.
    pub tenant: TenantId,
    /// When its answer is wanted. The model's own objective holds if there is none.
    pub objective: Objective,
    /// When its last byte arrived.
    pub arrived: Time,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Which request it was, for [`Handle::explain`].
    pub id: RequestId,
    /// The wanted outputs, in the order asked for.
    pub outputs: Vec<Tensor>,
    /// Where the time went.
    pub timing: Timing,
}

/// The answer to come. Dropping it cancels the request.
#[derive(Debug)]
pub struct Response {
    pub(crate) id: RequestId,
    pub(crate) answer: oneshot::Receiver<Result<Answer, Error>>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) over: bool,
}

impl Future for Response {
    type Output = Result<Answer, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.answer).poll(context));
        self.over = true;
        let lost = || Error::new(ErrorCode::Internal, "the node ended before the answer was ready");
        Poll::Ready(answer.unwrap_or_else(|_| Err(lost())))
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        if !self.over {
            self.driver.leave(self.id);
        }
    }
}

/// The way into the node, shared by all connections.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) tenants: Arc<Tenants>,
}

impl Handle {
    /// The present, on the node's clock.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Seconds since 1970, for what is stamped with a date.
    pub fn unix_seconds(&self) -> u64 {
        crate::clock::unix_seconds()
    }

    /// The model of this name and version, the highest ready version if none is given.
    ///
    /// # Errors
    /// `NotFound` in Triton's words if there is no such model or version, or it has no ready version;
    /// `Unavailable` while it loads.
    pub fn find(&self, name: &str, version: Option<u64>) -> Result<Arc<ModelEntry>, Error> {
        self.registry.find(name, version)
    }

    /// The tenant of this name.
    pub fn tenant(&self, name: &str) -> TenantId {
        self.tenants.find(name)
    }

    /// Loads a model, or what the repository now has in its place, and resolves when it serves.
    ///
    /// # Errors
    /// Why it does not; what served before goes on.
    pub async fn load_model(&self, name: &str) -> Result<(), Error> {
        self.ask(Wish::Load, name).await
    }

    /// Lets a model go once what it has accepted has ended, and resolves when its memory is free. A name that
    /// nobody knows is no mistake.
    ///
    /// # Errors
    /// If too much was asked for already, or the node ends.
    pub async fn unload_model(&self, name: &str) -> Result<(), Error> {
        self.ask(Wish::Unload, name).await
    }

    async fn ask(&self, wish: Wish, name: &str) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.driver.orders.ask(wish, name, reply)?;
        let lost = || Error::new(ErrorCode::Unavailable, "the server is shutting down");
        answer.await.unwrap_or_else(|_| Err(lost()))
    }

    /// The tenant of this name, if there is or was one.
    pub fn tenant_named(&self, name: &str) -> Option<TenantId> {
        self.tenants.known(name)
    }

    /// The name of a tenant; empty for those who give none.
    pub fn tenant_name(&self, tenant: TenantId) -> String {
        self.tenants.name(tenant)
    }

    /// Takes these tenants in the place of those that were configured before, while everything runs.
    pub fn set_tenants(&self, wanted: &BTreeMap<String, TenantTerms>) {
        let before = self.tenants.configured();
        for (tenant, terms) in self.tenants.set(wanted, |name| self.telemetry.tenant(name)) {
            self.driver.post(Message::Tenant(tenant, terms));
        }
        let gone = before.iter().filter(|(_, tenant)| !wanted.contains_key(&tenant.name));
        gone.for_each(|(_, tenant)| self.telemetry.tenant_gone(&tenant.name));
    }

    /// The configured tenants: what they may have, and what they use of it.
    pub fn tenants(&self) -> Vec<TenantEntry> {
        let entry = |(tenant, usage): (Arc<Tenant>, _)| TenantEntry {
            name: tenant.name.clone(),
            terms: tenant.terms,
            usage,
        };
        self.driver.usage(&self.tenants).into_iter().map(entry).collect()
    }

    /// Whether it is known beforehand that the scheduler refuses whatever this tenant sends now, because it
    /// said for how long it would. So what is sent in vain need not be read.
    ///
    /// # Errors
    /// What the scheduler said.
    pub fn may_send(&self, tenant: TenantId) -> Result<(), Error> {
        let Some(tenant) = self.tenants.get(tenant) else { return Ok(()) };
        let Some(error) = tenant.refusal(self.clock.now()) else { return Ok(()) };
        tenant.metrics.failed(&error);
        Err(error)
    }

    /// Counts a request of somebody who may not ask, by why.
    pub fn record_denied(&self, why: &'static str) {
        self.telemetry.denied(why);
    }

    /// Hands a request to the scheduler. A refusal may come at once or through the response.
    ///
    /// # Errors
    /// `ResourceExhausted` if more requests arrive than can even be looked at.
    pub fn submit(&self, submission: Submission) -> Result<Response, Error> {
        self.driver.submit(submission)
    }

    /// Hands a request that generates to the scheduler. A refusal may come at once or through the stream.
    ///
    /// # Errors
    /// The model generates nothing, or `ResourceExhausted` if more requests arrive than can even be looked
    /// at.
    pub fn generate(&self, request: GenerationRequest) -> Result<TokenStream, Error> {
        self.driver.generate(request)
    }

    /// Whether requests are welcome: every model was loaded or has failed, no lane is stalled, and the
    /// node is not draining.
    pub fn is_ready(&self) -> bool {
        !self.registry.is_loading() && self.driver.is_well()
    }

    /// Every model of the repository, by name and version.
    pub fn index(&self) -> Vec<IndexEntry> {
        self.registry.index()
    }

    /// The models that are ready, by name and version.
    pub fn models(&self) -> Vec<Arc<ModelEntry>> {
        self.registry.entries()
    }

    /// Why a request took as long as it did, if it is still remembered: it is one of the last some thousand,
    /// or one of the slowest of the last minutes.
    pub fn explain(&self, id: RequestId) -> Option<Explanation> {
        self.driver.explain(id)
    }

    /// The slowest requests of the last minutes, the slowest first.
    pub fn slowest(&self) -> Vec<Explanation> {
        self.driver.slowest()
    }

    /// The slowest of the requests of one tenant that are remembered, the slowest first.
    pub fn slowest_of(&self, tenant: TenantId) -> Vec<Explanation> {
        self.driver.slowest_of(tenant)
    }

    /// The steps that are remembered, some thousand at most, in the order in which they ended; those after
    /// this one, if it is still among them.
    pub fn steps(&self, after: Option<StepId>) -> Vec<StepRecord> {
        self.driver.steps(after)
    }

    /// The metrics in Prometheus' text format 0.0.4.
    pub fn metrics(&self) -> String {
        let snapshot = self.driver.snapshot(&self.registry, &self.tenants);
        self.telemetry.render(&snapshot)
    }
}

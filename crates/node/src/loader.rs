//! Decides what of the repository is served, and has models loaded and unloaded, on a thread of its own.
//!
//! When is the scheduler's business, which owns the memory; what people ask for is put to it as a wish. The
//! loader knows what lies in the repository, and which model serves under which name. An update is a second
//! model beside the first: once it is loaded and has run, the name is its own, and the first goes when the
//! last request that found it has ended. Wishes for a name wait while that name is on its way to something.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use quadrant_engine::{Engines, LaneSpec, Model, Profile};
use quadrant_types::{Error, ModelId, Time};

use crate::isolation;
use crate::message::Message;
use crate::orders::{Order, Reply, Wish};
use crate::profiles::ProfileStore;
use crate::repository::{self, Found, ModelFiles, Stamp};
use crate::{Config, Handle, ModelEntry, ModelSettings};

mod aside;
mod bringing;
mod deeds;
mod trying;
mod wishes;

use aside::Aside;
use bringing::{LoadingLanes, Means};
use trying::{Measurer, Unknown};

pub(crate) use bringing::Brought;

/// How often it is looked at whether a model that goes has no more requests.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long to wait before offering something again to a lane that is full.
const LANE_FULL_WAIT: Duration = Duration::from_millis(1);
/// The longest time without anything to do.
const IDLE: Duration = Duration::from_secs(60);

pub(crate) struct Loader {
    means: Means,
    loading_lanes: LoadingLanes,
    measurer: Measurer,
    /// Where models are looked at and taken down.
    aside: Aside,
    known: BTreeMap<ModelId, Known>,
    /// Loads that have not ended, and since when.
    loading: BTreeMap<ModelId, Time>,
    /// Models that are to be measured before they are loaded, the first first, and since when.
    unknown: VecDeque<(Unknown, Time)>,
    /// One is being measured.
    is_measuring: bool,
    /// The model that serves under each name, or is to.
    names: BTreeMap<String, ModelId>,
    /// Wishes for names that are on their way to something.
    deferred: VecDeque<(Wish, String, Option<Reply>)>,
    /// What did not load, so that it is not tried at each look at the repository.
    failed: BTreeMap<String, Stamp>,
    next_id: u32,
    looked_at: Time,
}

/// A model that can be loaded.
struct Known {
    name: String,
    version: u64,
    files: ModelFiles,
    stamp: Stamp,
    settings: ModelSettings,
    profile: Option<Profile>,
    state: State,
    entry: Option<Arc<ModelEntry>>,
    model: Option<Arc<dyn Model>>,
    /// The model whose place it takes.
    replaces: Option<ModelId>,
    /// Another has taken its place; it is forgotten when it is gone.
    is_replaced: bool,
    /// Who waits for what it is on its way to.
    replies: Vec<Reply>,
}

/// What a model is on its way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is to be loaded, and serves then.
    Coming,
    /// It serves; on demand it may be absent.
    Open,
    /// Nobody finds it any more; those who did have not ended.
    Draining,
    /// The scheduler was told to let it go.
    Leaving,
    /// It is unloaded, until somebody wants it.
    Closed,
}

impl Loader {
    /// A loader for what was found. The models are listed as loading, or with why they cannot be.
    pub(crate) fn new(
        handle: Handle,
        engines: Engines,
        lanes: Vec<LaneSpec>,
        config: Config,
    ) -> io::Result<Self> {
        let folder = config.profiles_dir.clone();
        let profiles = folder.map(|folder| ProfileStore::new(folder, config.cores.len()));
        let hosts = Arc::new(isolation::hosts(&handle, &engines, &config));
        let means = Means {
            handle,
            engines,
            lanes,
            config: Arc::new(config),
            profiles,
            hosts,
            trying: Arc::default(),
        };
        Ok(Self {
            loading_lanes: LoadingLanes::start(means.config.limits.loads_max, &means)?,
            measurer: Measurer::start(&means)?,
            aside: Aside::start("unloading", means.config.cores)?,
            looked_at: means.handle.now(),
            means,
            known: BTreeMap::new(),
            loading: BTreeMap::new(),
            unknown: VecDeque::new(),
            is_measuring: false,
            names: BTreeMap::new(),
            deferred: VecDeque::new(),
            failed: BTreeMap::new(),
            next_id: 0,
        })
    }

    /// Lists what was found: as loading, or with why it cannot be served.
    pub(crate) fn list(&self, found: &[Found]) {
        for model in found {
            match &model.files {
                Ok(_) => self.means.handle.registry.loading(&model.name, model.version),
                Err(reason) => self.not_served(&model.name, model.version, reason),
            }
        }
    }

    /// Serves what was found, and then does what it is told until the node ends.
    pub(crate) fn run(mut self, found: Vec<Found>) {
        for model in found {
            let Found { name, version, files: Ok(files) } = model else { continue };
            if let Err(reason) = self.introduce(&name, version, files, None) {
                self.not_served(&name, version, &reason);
            }
            // Those before it may be ready to be loaded.
            self.work(Duration::ZERO);
        }
        while self.work(self.patience()) {
            self.look_at_repository();
        }
    }

    /// Waits for something to do and does it; false when there will be nothing more.
    fn work(&mut self, mut patience: Duration) -> bool {
        loop {
            self.let_go();
            self.retry_deferred();
            match self.means.handle.driver.orders.next(patience) {
                Ok(Some(Order::Brought(brought))) => self.brought(brought),
                Ok(Some(Order::Measured(id, result))) => self.measured(id, result),
                Ok(Some(Order::Load(id))) => self.load(id),
                Ok(Some(Order::Unload(id))) => self.unload(id),
                Ok(Some(Order::Refused(id, error))) => self.not_loaded(id, &error),
                Ok(Some(Order::Asked(wish, name, reply))) => self.wish(wish, name, Some(reply)),
                Ok(None) => {
                    self.measure_next();
                    return true;
                }
                Err(_) => return false,
            }
            patience = Duration::ZERO;
        }
    }

    fn patience(&self) -> Duration {
        let is_draining = self.known.values().any(|known| known.state == State::Draining);
        let waits = !self.is_measuring && !self.unknown.is_empty();
        match self.means.config.poll {
            _ if is_draining || !self.deferred.is_empty() || waits => LOOK_AGAIN,
            Some(poll) => (self.looked_at + poll).since(self.means.handle.now()),
            None => IDLE,
        }
    }

    /// Takes a model in: it is measured first if nobody knows it.
    fn introduce(
        &mut self,
        name: &str,
        version: u64,
        files: ModelFiles,
        replaces: Option<ModelId>,
    ) -> Result<ModelId, String> {
        let mut known = Known::new(name, version, files, &self.means.config)?;
        let id = ModelId(self.next_id);
        self.next_id += 1;
        known.replaces = replaces;
        known.profile = self.stored_profile(&known);
        if replaces.is_none() {
            self.names.insert(name.to_owned(), id);
        }
        if let Some(unknown) = self.unknown(id, &known) {
            self.unknown.push_back((unknown, self.means.handle.now()));
        } else {
            if known.profile.is_some() {
                self.means.handle.telemetry.profile_reused(&known.name);
            }
            self.announce(id, &mut known);
        }
        self.known.insert(id, known);
        Ok(id)
    }

    /// Makes a model known to the scheduler, and has it loaded unless requests will.
    fn announce(&mut self, id: ModelId, known: &mut Known) {
        let waits_for_requests = known.replaces.is_none() && self.open_absent(id, known);
        let (terms, holding) = self.terms_of(id, known);
        self.means.handle.driver.post(Message::Known(id, terms, holding));
        if let Some(entry) = known.entry.as_ref().filter(|_| waits_for_requests) {
            self.means.handle.registry.ready(Arc::clone(entry), None);
        }
        // Who asked for it by name meanwhile does not wait for a request.
        if !waits_for_requests || !known.replies.is_empty() {
            self.means.handle.driver.post(Message::LoadWanted(id));
        }
    }

    fn not_served(&self, name: &str, version: u64, reason: &str) {
        self.means.handle.telemetry.model_failed(name, version, reason);
        self.means.handle.registry.unavailable(name, version, reason.to_owned());
    }

    /// Tells the scheduler of models that go and that nobody holds any more.
    fn let_go(&mut self) {
        let unheld = |known: &Known| known.entry.as_ref().is_none_or(|entry| Arc::strong_count(entry) == 1);
        let done = |(id, known): (&ModelId, &mut Known)| {
            (known.state == State::Draining && unheld(known)).then(|| {
                known.state = State::Leaving;
                (*id, known.model.is_none() && !self.loading.contains_key(id))
            })
        };
        let done: Vec<_> = self.known.iter_mut().filter_map(done).collect();
        for (id, is_absent) in done {
            self.means.handle.driver.post(Message::UnloadWanted(id));
            if is_absent {
                self.gone(id);
            }
        }
    }

    /// A model that was to go is gone.
    fn gone(&mut self, id: ModelId) {
        let Some(known) = self.known.get_mut(&id) else { return };
        known.state = State::Closed;
        let (replies, is_replaced) = (std::mem::take(&mut known.replies), known.is_replaced);
        if is_replaced {
            self.forget(id);
        } else {
            self.means.handle.registry.unavailable(&known.name, known.version, "unloaded".to_owned());
        }
        replies.into_iter().for_each(|reply| tell(Some(reply), Ok(())));
    }

    fn forget(&mut self, id: ModelId) {
        self.means.handle.driver.post(Message::ModelDown(id));
        if let Some(known) = self.known.remove(&id)
            && self.names.get(&known.name) == Some(&id)
        {
            self.names.remove(&known.name);
        }
    }

    /// Loads what is new or has changed in the repository, and lets go what is there no more.
    fn look_at_repository(&mut self) {
        let now = self.means.handle.now();
        if self.means.config.poll.is_none_or(|poll| now < self.looked_at + poll) {
            return;
        }
        self.looked_at = now;
        let found = match repository::scan(&self.means.config.models_dir) {
            Ok(found) => found,
            Err(error) => return self.means.handle.telemetry.repository_unreadable(&error),
        };
        let gone: Vec<String> = self
            .names
            .keys()
            .filter(|name| !found.iter().any(|model| model.name == **name))
            .cloned()
            .collect();
        for name in gone {
            self.wish(Wish::Unload, name, None);
        }
        for Found { name, version, files } in found {
            let Ok(files) = files else { continue };
            let stamp = Stamp::of(&files);
            let known = self.names.get(&name).and_then(|id| self.known.get(id));
            let is_new = known.is_none_or(|known| known.version != version || known.stamp != stamp);
            if is_new && self.failed.get(&name) != Some(&stamp) && !self.is_busy(&name) {
                // Tried once; it is taken out when it does load.
                self.failed.insert(name.clone(), stamp);
                self.wish(Wish::Load, name, None);
            }
        }
        self.failed.retain(|name, _| self.names.contains_key(name));
    }
}

/// Answers whoever waits, if somebody does.
#[expect(clippy::needless_pass_by_value, reason = "most results are made for this call")]
fn tell(reply: Option<Reply>, result: Result<(), Error>) {
    // He may have given up waiting.
    reply.into_iter().for_each(|reply| drop(reply.send(result.clone())));
}

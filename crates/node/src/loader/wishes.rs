//! What people ask for of a model, by name. What is asked of a name that is on its way to something waits.

use std::time::Duration;

use quadrant_types::{Error, ErrorCode, ModelId};

use super::{Known, Loader, State, tell};
use crate::message::Message;
use crate::orders::{Reply, Wish};
use crate::repository::{self, Found, Stamp};

/// Wishes that may wait for names that are on their way to something.
const DEFERRED_MAX: usize = 256;

impl Loader {
    /// A name is on its way to something, or somebody waits for its model.
    pub(super) fn is_busy(&self, name: &str) -> bool {
        self.known.values().any(|known| {
            let moves = matches!(known.state, State::Coming | State::Draining | State::Leaving);
            known.name == name && (moves || !known.replies.is_empty())
        })
    }

    pub(super) fn retry_deferred(&mut self) {
        for (wish, name, reply) in std::mem::take(&mut self.deferred) {
            // Those for one name stay in order.
            if self.is_busy(&name) || self.deferred.iter().any(|(_, other, _)| *other == name) {
                self.deferred.push_back((wish, name, reply));
            } else {
                self.wish(wish, name, reply);
            }
        }
    }

    pub(super) fn wish(&mut self, wish: Wish, name: String, reply: Option<Reply>) {
        if self.is_busy(&name) {
            if self.deferred.len() < DEFERRED_MAX {
                return self.deferred.push_back((wish, name, reply));
            }
            let text = format!("`{DEFERRED_MAX}` loads and unloads wait for others already");
            let full = Error::new(ErrorCode::ResourceExhausted, text).retry_after(Duration::from_secs(1));
            return tell(reply, Err(full));
        }
        match wish {
            Wish::Load => self.wish_load(&name, reply),
            Wish::Unload => self.wish_unload(&name, reply),
        }
    }

    fn wish_load(&mut self, name: &str, reply: Option<Reply>) {
        let current = self.names.get(name).copied();
        let found = repository::find(&self.means.config.models_dir, name);
        let Some(Found { version, files, .. }) = found else {
            let text = format!("failed to load '{name}', failed to poll from model repository");
            return tell(reply, Err(Error::new(ErrorCode::Internal, text)));
        };
        let files = match files {
            Ok(files) => files,
            Err(reason) => return self.cannot_load(name, version, current, &reason, reply),
        };
        let same = |known: &Known| known.version == version && known.stamp == Stamp::of(&files);
        if let Some(id) = current.filter(|id| self.known.get(id).is_some_and(same)) {
            return self.load_again(id, reply);
        }
        let is_open = |id: &ModelId| self.known.get(id).is_some_and(|known| known.state == State::Open);
        let replaces = current.filter(is_open);
        if replaces.is_none() {
            if let Some(known) = current.and_then(|id| self.known.get(&id)) {
                self.means.handle.registry.forget(name, known.version);
            }
            current.into_iter().for_each(|id| self.forget(id));
            self.means.handle.registry.loading(name, version);
        }
        match self.introduce(name, version, files, replaces) {
            Ok(id) => self.load_again(id, reply),
            Err(reason) => self.cannot_load(name, version, replaces, &reason, reply),
        }
    }

    /// Has a model loaded that is known, and tells when it is.
    fn load_again(&mut self, id: ModelId, reply: Option<Reply>) {
        let Some(known) = self.known.get_mut(&id) else { return };
        if known.model.is_some() {
            return tell(reply, Ok(()));
        }
        if known.state == State::Closed {
            known.state = State::Coming;
            self.means.handle.registry.loading(&known.name, known.version);
        }
        known.replies.extend(reply);
        self.means.handle.driver.post(Message::LoadWanted(id));
    }

    pub(super) fn cannot_load(
        &mut self,
        name: &str,
        version: u64,
        serving: Option<ModelId>,
        reason: &str,
        reply: Option<Reply>,
    ) {
        self.means.handle.telemetry.model_failed(name, version, reason);
        let serving = serving.and_then(|id| self.known.get(&id)).filter(|known| known.state == State::Open);
        match serving {
            Some(known) => {
                let why = format!("version `{version}`: {reason}");
                self.means.handle.registry.update_failed(name, known.version, why);
                if known.version != version {
                    self.means.handle.registry.unavailable(name, version, reason.to_owned());
                }
            }
            None => self.means.handle.registry.unavailable(name, version, reason.to_owned()),
        }
        let text = format!("failed to load '{name}': {reason}");
        tell(reply, Err(Error::new(ErrorCode::Internal, text)));
    }

    fn wish_unload(&mut self, name: &str, reply: Option<Reply>) {
        let Some(known) = self.names.get(name).and_then(|id| self.known.get_mut(id)) else {
            // As Triton does, also for a name that nobody knows.
            return tell(reply, Ok(()));
        };
        if known.state != State::Open {
            return tell(reply, Ok(()));
        }
        known.state = State::Draining;
        known.replies.extend(reply);
        self.means.handle.registry.unloading(name, known.version);
    }
}

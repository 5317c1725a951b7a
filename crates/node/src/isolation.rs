//! Models whose engines run in processes of their own: which model goes where, what the scheduler and the
//! operator are told, and which inputs are let in no more.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use quadrant_engine::{
    EngineError, EngineHost, Engines, HostCommand, HostEvent, HostSink, HostSpec, Model, ModelSource,
};
use quadrant_types::{Clock, Error, HostId, Reason, Tensor};
use sha2::{Digest, Sha256};

use crate::config::Isolation;
use crate::driver::Driver;
use crate::message::Message;
use crate::telemetry::Telemetry;
use crate::{Config, Handle, ModelSettings};

/// Inputs of one model that are remembered for having ended its engine; the oldest is forgotten first.
const REFUSED_MAX: usize = 256;

/// What is told of a host, given its number and name.
pub(crate) type Sinks = Box<dyn Fn(HostId, &str) -> Arc<dyn HostSink> + Send + Sync>;

/// The processes of engines, by the name of their model or group.
pub(crate) struct HostTable {
    command: Option<HostCommand>,
    onnxruntime: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    sinks: Sinks,
    known: Mutex<BTreeMap<String, (HostId, Weak<EngineHost>)>>,
}

impl HostTable {
    /// No process yet; `sinks` are told of each.
    pub(crate) fn new(
        command: Option<HostCommand>,
        onnxruntime: Option<PathBuf>,
        clock: Arc<dyn Clock>,
        sinks: Sinks,
    ) -> Self {
        Self { command, onnxruntime, clock, sinks, known: Mutex::default() }
    }

    /// Loads a model in the process that its settings ask for; `None` if they ask for none.
    ///
    /// # Errors
    /// Why it cannot be served, for a person.
    pub(crate) fn load(
        &self,
        source: &ModelSource,
        settings: &ModelSettings,
    ) -> Result<Option<Apart>, EngineError> {
        if settings.isolation != Some(Isolation::Process) {
            return Ok(None);
        }
        let (id, host) = self.host(&source.name, settings)?;
        let model = host.load(source)?;
        Ok(Some((model, Hosted { id, host, refused: Refused::default() })))
    }

    fn host(&self, model: &str, settings: &ModelSettings) -> Result<(HostId, Arc<EngineHost>), EngineError> {
        let load = |error: String| EngineError::Load(error);
        let command = self.command.clone();
        let command = command.ok_or_else(|| load("no process for its engine can be started here".into()))?;
        // A group may be called like a model.
        let (key, name) = match &settings.isolation_group {
            Some(group) => (format!("group {group}"), group.as_str()),
            None => (format!("model {model}"), model),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let memory_bytes = settings.isolation_memory_bytes;
        if let Some((id, host)) = known.get(&key).and_then(|(id, host)| Some((*id, host.upgrade()?))) {
            if host.spec().memory_bytes == memory_bytes {
                return Ok((id, host));
            }
            return Err(load(format!(
                "models of the isolation group `{name}` say different `isolation_memory_mb`; say the same for all"
            )));
        }
        let next = known.values().map(|(id, _)| id.0 + 1).max().unwrap_or(0);
        let id = known.get(&key).map_or(HostId(next), |(id, _)| *id);
        let spec = HostSpec { name: name.into(), memory_bytes, onnxruntime: self.onnxruntime.clone() };
        let host = EngineHost::start(spec, command, Arc::clone(&self.clock), (self.sinks)(id, name))?;
        known.insert(key, (id, Arc::downgrade(&host)));
        Ok((id, host))
    }
}

impl fmt::Debug for HostTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTable").field("command", &self.command).finish_non_exhaustive()
    }
}

/// A model that was loaded in a process, with that.
pub(crate) type Apart = (Arc<dyn Model>, Hosted);

/// A model's process.
#[derive(Debug)]
pub(crate) struct Hosted {
    pub(crate) id: HostId,
    pub(crate) host: Arc<EngineHost>,
    pub(crate) refused: Refused,
}

/// Inputs that ended the process twice, the second time alone.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    known: Mutex<VecDeque<Fingerprint>>,
}

/// The bytes of all inputs, and a hash of them with their types and shapes. The number is looked at first, so
/// that inputs are hashed only if one of their size is refused.
type Fingerprint = (usize, [u8; 32]);

impl Refused {
    /// Remembers inputs.
    pub(crate) fn add(&self, inputs: &[Tensor]) {
        let fingerprint = (bytes(inputs), hash(inputs));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REFUSED_MAX {
            known.pop_front();
        }
        known.push_back(fingerprint);
    }

    /// Whether inputs may come in.
    ///
    /// # Errors
    /// What the client is told if not.
    pub(crate) fn check(&self, inputs: &[Tensor]) -> Result<(), Error> {
        let size = bytes(inputs);
        let of_size = |known: &VecDeque<Fingerprint>| known.iter().any(|(bytes, _)| *bytes == size);
        if !of_size(&self.known.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let fingerprint = (size, hash(inputs));
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&fingerprint) {
            return Ok(());
        }
        let text = "this input ended the model's engine twice and is refused";
        Err(Error::invalid(text).because(Reason::Lethal))
    }
}

fn bytes(inputs: &[Tensor]) -> usize {
    inputs.iter().map(|input| input.data.len()).sum()
}

fn hash(inputs: &[Tensor]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update(input.datatype.name());
        for dim in &input.shape {
            hash.update((*dim as u64).to_le_bytes());
        }
        hash.update(u64::MAX.to_le_bytes());
        hash.update(&input.data);
    }
    hash.finalize().into()
}

/// The processes of engines; what happens to them is told to the scheduler.
pub(crate) fn hosts(handle: &Handle, engines: &Engines, config: &Config) -> HostTable {
    let (driver, telemetry) = (Arc::downgrade(&handle.driver), Arc::clone(&handle.telemetry));
    let clock = Arc::clone(&engines.clock);
    let sinks = Box::new(move |id, name: &str| {
        let (driver, telemetry) = (Weak::clone(&driver), Arc::clone(&telemetry));
        let (name, clock) = (name.to_owned(), Arc::clone(&clock));
        Arc::new(Reporter { id, name, driver, telemetry, clock }) as Arc<dyn HostSink>
    });
    let (command, library) = (config.engine_host.clone(), config.onnxruntime.clone());
    HostTable::new(command, library, Arc::clone(&engines.clock), sinks)
}

/// Tells the scheduler and the operator what happens to a process.
pub(crate) struct Reporter {
    pub(crate) id: HostId,
    pub(crate) name: String,
    /// Weak, since the driver holds the lanes that hold the process.
    pub(crate) driver: Weak<Driver>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl HostSink for Reporter {
    fn report(&self, event: HostEvent) {
        let message = match event {
            HostEvent::Up { process, generation, took } => {
                self.telemetry.host_up(&self.name, process, took);
                Message::HostUp(self.id, generation)
            }
            HostEvent::Down { cause, reason, back_in } => {
                self.telemetry.host_down(&self.name, cause, &reason, back_in);
                Message::HostDown(self.id, self.clock.now() + back_in)
            }
        };
        if let Some(driver) = self.driver.upgrade() {
            driver.post(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quadrant_types::{DataType, ErrorCode, Shape};

    use super::*;

    fn inputs(datatype: DataType, shape: &[usize], data: &[u8]) -> [Tensor; 1] {
        [Tensor { datatype, shape: Shape::from_slice(shape), data: Bytes::copy_from_slice(data) }]
    }

    #[test]
    fn only_the_same_input_is_refused() {
        let refused = Refused::default();
        let lethal = inputs(DataType::Uint8, &[2, 2], b"abcd");
        assert_eq!(refused.check(&lethal), Ok(()));
        refused.add(&lethal);
        let error = refused.check(&lethal).unwrap_err();
        assert_eq!((error.code, error.reason), (ErrorCode::InvalidArgument, Some(Reason::Lethal)));
        for other in [
            inputs(DataType::Uint8, &[2, 2], b"abce"),
            inputs(DataType::Uint8, &[4, 1], b"abcd"),
            inputs(DataType::Int8, &[2, 2], b"abcd"),
            inputs(DataType::Uint8, &[5], b"abcde"),
        ] {
            assert_eq!(refused.check(&other), Ok(()));
        }
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let refused = Refused::default();
        let numbered = |number: usize| inputs(DataType::Uint8, &[8], &(number as u64).to_le_bytes());
        (0..=REFUSED_MAX).for_each(|number| refused.add(&numbered(number)));
        assert!(refused.check(&numbered(0)).is_ok());
        assert!(refused.check(&numbered(1)).is_err() && refused.check(&numbered(REFUSED_MAX)).is_err());
    }
}

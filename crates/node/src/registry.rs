//! The models that this node knows, by name and version, as the protocols see them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use quadrant_engine::Language;
use quadrant_policy::ModelTerms;
use quadrant_types::{
    DataType, Error, ErrorCode, ModelId, ModelSpec, Objective, Priority, Shape, ShapeId, Tensor, Time,
};
use smallvec::SmallVec;

use crate::Pace;
use crate::isolation::Hosted;
use crate::telemetry::ModelMetrics;

/// Distinct shapes of one model that are kept apart before the table starts anew. A client that never
/// repeats a shape then only loses batching.
const SHAPES_MAX: usize = 1_024;

/// One loaded version of one model.
#[derive(Debug)]
pub struct ModelEntry {
    /// Its number within this process.
    pub id: ModelId,
    /// What it takes and gives.
    pub spec: ModelSpec,
    /// Which engine runs it.
    pub engine: &'static str,
    /// The most rows of one step; 1 if the model does not batch along its first dimension.
    pub rows_max: u32,
    /// Whether requests carry a batch dimension first (`rows_max` may still be 1).
    pub batches: bool,
    /// Cores that one step uses where all have work.
    pub width: usize,
    /// What the scheduler was told of it.
    pub terms: ModelTerms,
    /// By when an answer is wanted, unless the request says so.
    pub latency_objective: Option<Duration>,
    /// When tokens are wanted, unless the request says so.
    pub pace: Pace,
    /// What is needed to talk to it in words, if it generates.
    pub language: Option<Arc<Language>>,
    /// How important its requests are, unless they say so.
    pub priority: Priority,
    /// Why it batches, or does not, and at which width, in words.
    pub rationale: String,
    /// Whether it is loaded when a request comes for it.
    pub on_demand: bool,
    /// Whether it is in memory.
    pub(crate) resident: AtomicBool,
    pub(crate) hosted: Option<Hosted>,
    pub(crate) metrics: ModelMetrics,
    pub(crate) shapes: ShapeTable,
}

impl ModelEntry {
    /// Whether it is in memory at present.
    pub fn is_resident(&self) -> bool {
        self.resident.load(Ordering::Relaxed)
    }

    /// Whether requests are run as they come: its engine's own process, if it has one, is there.
    pub fn is_ready(&self) -> bool {
        self.hosted.as_ref().is_none_or(|hosted| hosted.host.away().is_none())
    }

    /// Counts a request that ended before it was submitted, such as one that does not fit the model.
    pub fn record_failure(&self, error: &Error) {
        self.metrics.failed(error.code);
    }

    /// When an answer is wanted: as the request says, or as the model does, or whichever is sooner.
    pub fn objective(&self, arrived: Time, said: Objective) -> Objective {
        let Some(within) = self.latency_objective else { return said };
        let by = arrived + within;
        match said {
            Objective::BestEffort => Objective::Target { by, until: Time::MAX },
            Objective::EndBy(until) if by < until => Objective::Target { by, until },
            Objective::EndBy(_) | Objective::Target { .. } | Objective::Tokens { .. } => said,
        }
    }

    /// The rows of a request for this model.
    pub fn rows(&self, inputs: &[Tensor]) -> u32 {
        let first = inputs.first().and_then(|input| input.shape.first()).copied();
        if self.batches { first.and_then(|rows| u32::try_from(rows).ok()).unwrap_or(1) } else { 1 }
    }
}

/// Gives a small number to everything that must be equal for two requests to share a batch.
#[derive(Debug, Default)]
pub(crate) struct ShapeTable {
    known: Mutex<BTreeMap<Signature, ShapeId>>,
    next: AtomicU32,
}

/// Every dimension but the first of every input, how long its texts are, and the wanted outputs.
type Signature = (SmallVec<[(DataType, Shape); 4]>, Arc<[usize]>);

impl ShapeTable {
    /// The number of this combination. For a model that does not batch nothing needs to be told apart but
    /// the cost, and any number will do.
    pub(crate) fn intern(&self, inputs: &[Tensor], outputs: &Arc<[usize]>, batches: bool) -> ShapeId {
        let skipped = usize::from(batches);
        let dims = |input: &Tensor| {
            let mut dims = Shape::from_slice(input.shape.get(skipped..).unwrap_or_default());
            if input.datatype == DataType::Bytes {
                // A long text is another piece of work than a short one: texts are told apart by how often
                // their length doubles.
                let each = input.data.len() / input.elements().max(1);
                dims.push(each.checked_ilog2().unwrap_or(0) as usize);
            }
            (input.datatype, dims)
        };
        let signature = (inputs.iter().map(dims).collect(), Arc::clone(outputs));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = known.get(&signature) {
            return *id;
        }
        if known.len() >= SHAPES_MAX {
            known.clear();
        }
        let id = ShapeId(self.next.fetch_add(1, Ordering::Relaxed));
        known.insert(signature, id);
        id
    }
}

/// The state of a model as the repository index shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// Being loaded.
    Loading,
    /// Serving.
    Ready,
    /// Finishing what it has accepted, and then gone.
    Unloading,
    /// Not serving; the reason says why.
    Unavailable,
}

/// One line of the repository index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model's name.
    pub name: String,
    /// Its version; empty if none could be found.
    pub version: String,
    /// Its state.
    pub state: ModelState,
    /// Why it is not ready; what there is to say of one that is.
    pub reason: String,
}

/// One version of one model, whatever became of it.
#[derive(Debug)]
enum Slot {
    Loading,
    /// Serving, and why what should take its place does not.
    Ready(Arc<ModelEntry>, Option<String>),
    Unloading,
    Unavailable(String),
}

/// All models of the node. Read on every request, written when a model changes state.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// Version 0 stands for "no version could be found".
    slots: RwLock<BTreeMap<String, BTreeMap<u64, Slot>>>,
}

impl Registry {
    pub(crate) fn loading(&self, name: &str, version: u64) {
        self.set(name, version, Slot::Loading);
    }

    /// Shows a model as ready, in the place of another version of it if one is given: nobody sees neither.
    pub(crate) fn ready(&self, entry: Arc<ModelEntry>, replaced: Option<u64>) {
        let (name, version) = (Arc::clone(&entry.spec.name), entry.spec.version);
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let versions = slots.entry(name.to_string()).or_default();
        if let Some(replaced) = replaced {
            // With it goes what was tried in vain before.
            versions.retain(|version, slot| *version != replaced && !matches!(slot, Slot::Unavailable(_)));
        }
        versions.insert(version, Slot::Ready(entry, None));
    }

    /// A model goes: it is found no more, and finishes what it has accepted.
    pub(crate) fn unloading(&self, name: &str, version: u64) {
        self.set(name, version, Slot::Unloading);
    }

    /// What was to take the place of this version did not load.
    pub(crate) fn update_failed(&self, name: &str, version: u64, reason: String) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get_mut(name).and_then(|versions| versions.get_mut(&version));
        if let Some(Slot::Ready(_, why)) = slot {
            *why = Some(reason);
        }
    }

    /// Forgets a version, whose place another takes.
    pub(crate) fn forget(&self, name: &str, version: u64) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.get_mut(name).and_then(|versions| versions.remove(&version));
    }

    pub(crate) fn unavailable(&self, name: &str, version: u64, reason: String) {
        self.set(name, version, Slot::Unavailable(reason));
    }

    fn set(&self, name: &str, version: u64, slot: Slot) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.entry(name.to_owned()).or_default().insert(version, slot);
    }

    /// The ready model of this name and version, the highest ready version if none is given.
    pub(crate) fn find(&self, name: &str, version: Option<u64>) -> Result<Arc<ModelEntry>, Error> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let not_found =
            |rest: String| Error::new(ErrorCode::NotFound, format!("Request for unknown model: {rest}"));
        let Some(versions) = slots.get(name) else { return Err(not_found(format!("'{name}' is not found"))) };
        let slot = match version {
            Some(version) => {
                let no_version = || not_found(format!("'{name}' version {version} is not found"));
                versions.get(&version).ok_or_else(no_version)?
            }
            None => {
                let ready = versions.values().rev().find(|slot| matches!(slot, Slot::Ready(..)));
                let Some(slot) = ready.or_else(|| versions.values().next_back()) else {
                    return Err(not_found(format!("'{name}' has no available versions")));
                };
                slot
            }
        };
        match slot {
            Slot::Ready(entry, _) => Ok(Arc::clone(entry)),
            Slot::Loading => Err(Error::new(ErrorCode::Unavailable, format!("model '{name}' is loading"))
                .retry_after(std::time::Duration::from_secs(1))),
            Slot::Unloading => Err(not_found(format!("'{name}' has no available versions: unloading"))),
            Slot::Unavailable(reason) => {
                Err(not_found(format!("'{name}' has no available versions: {reason}")))
            }
        }
    }

    pub(crate) fn entries(&self) -> Vec<Arc<ModelEntry>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let ready = |slot: &Slot| match slot {
            Slot::Ready(entry, _) => Some(Arc::clone(entry)),
            Slot::Loading | Slot::Unloading | Slot::Unavailable(_) => None,
        };
        slots.values().flat_map(BTreeMap::values).filter_map(ready).collect()
    }

    /// Whether some model is still being loaded.
    pub(crate) fn is_loading(&self) -> bool {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.values().flat_map(BTreeMap::values).any(|slot| matches!(slot, Slot::Loading))
    }

    pub(crate) fn index(&self) -> Vec<IndexEntry> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let line = |name: &String, version: u64, slot: &Slot| {
            let (state, reason) = match slot {
                Slot::Loading => (ModelState::Loading, String::new()),
                Slot::Ready(entry, why) => {
                    match entry.hosted.as_ref().and_then(|hosted| hosted.host.away()) {
                        // It is found all the same: requests may wait until its engine is back.
                        Some(reason) => (ModelState::Unavailable, reason),
                        None => (ModelState::Ready, remark(entry, why.as_deref())),
                    }
                }
                Slot::Unloading => (ModelState::Unloading, String::new()),
                Slot::Unavailable(reason) => (ModelState::Unavailable, reason.clone()),
            };
            let version = if version == 0 { String::new() } else { version.to_string() };
            IndexEntry { name: name.clone(), version, state, reason }
        };
        let versions = |(name, versions): (&String, &BTreeMap<u64, Slot>)| {
            versions.iter().map(|(version, slot)| line(name, *version, slot)).collect::<Vec<_>>()
        };
        slots.iter().flat_map(versions).collect()
    }
}

/// What there is to say of a model that is ready.
fn remark(entry: &ModelEntry, why: Option<&str>) -> String {
    match why {
        Some(why) => format!("serving as before; what should take its place does not load: {why}"),
        None if entry.is_resident() => String::new(),
        None => "absent; it is loaded when a request comes".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn errors_use_tritons_words() {
        let registry = Registry::default();
        registry.unavailable("broken", 1, "the file is empty".into());
        registry.loading("slow", 2);
        let error = |name, version| registry.find(name, version).unwrap_err();
        assert_eq!(error("nope", None).message, "Request for unknown model: 'nope' is not found");
        let seven = error("broken", Some(7));
        assert_eq!(seven.message, "Request for unknown model: 'broken' version 7 is not found");
        let broken = error("broken", None);
        assert_eq!(broken.code, ErrorCode::NotFound);
        assert!(broken.message.ends_with("'broken' has no available versions: the file is empty"));
        assert_eq!(error("slow", None).code, ErrorCode::Unavailable);
        assert!(registry.is_loading());
    }

    #[test]
    fn the_batch_dimension_does_not_tell_shapes_apart() {
        let table = ShapeTable::default();
        let outputs: Arc<[usize]> = Arc::from([0]);
        let tensor = |dims: &[usize]| Tensor {
            datatype: DataType::Fp32,
            shape: Shape::from_slice(dims),
            data: Bytes::new(),
        };
        let id = |dims: &[usize], batches| table.intern(&[tensor(dims)], &outputs, batches);
        assert_eq!(id(&[1, 8], true), id(&[4, 8], true));
        assert_ne!(id(&[1, 8], true), id(&[1, 9], true));
        assert_ne!(id(&[1, 8], false), id(&[4, 8], false));
        for size in 0..3_000 {
            id(&[1, size], true);
        }
        assert!(table.known.lock().unwrap().len() <= SHAPES_MAX);
    }
}

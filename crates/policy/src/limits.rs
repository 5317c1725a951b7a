//! What bounds the scheduler, and by which rules it goes.

use std::time::Duration;

/// How requests are put in order and given lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discipline {
    /// Quadrant's own: by latest start across all models, several steps side by side, long ones preempted
    /// by short urgent ones, what cannot be in time refused on arrival.
    #[default]
    Quadrant,
    /// What the usual servers do: each model batches by itself, first come first served, all models at
    /// once; objectives play no part.
    Fifo,
    /// One step at a time on all cores, profiled, by strict deadlines (Gujarati et al., OSDI 2020).
    Clockwork,
}

impl Discipline {
    /// Every discipline.
    pub const ALL: [Self; 3] = [Self::Quadrant, Self::Fifo, Self::Clockwork];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quadrant => "quadrant",
            Self::Fifo => "fifo",
            Self::Clockwork => "clockwork",
        }
    }
}

/// Bounds that hold for the whole domain. Reaching one is a normal answer, never a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests waiting, over all models.
    pub queued_requests_max: usize,
    /// Bytes of inputs waiting or running, over all models.
    pub bytes_in_max: u64,
    /// The longest that any request waits, objective or not.
    pub wait_max: Duration,
    /// A step that runs this many times its prediction marks its lane as stalled,
    pub stall_factor: u32,
    /// but never before this time, so that noise on a short step does not count.
    pub stall_floor: Duration,
    /// The share of all core time that best-effort work gets while it waits, in thousandths.
    pub best_effort_floor_permille: u32,
    /// The memory of the device.
    pub memory: MemoryBudget,
    /// Which models make room.
    pub eviction: Eviction,
    /// Models that are loaded at the same time, at least 1.
    pub loads_max: usize,
}

/// Which models make room for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// Those that would be missed least for their bytes.
    #[default]
    Worth,
    /// Those used longest ago, to compare with.
    Lru,
}

impl Eviction {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Worth, Self::Lru];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worth => "worth",
            Self::Lru => "lru",
        }
    }
}

/// The bytes that there are for models and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Of the whole process.
    pub bytes: u64,
    /// What the process has before any model, which is never free.
    pub process_bytes: u64,
}

impl MemoryBudget {
    /// More than any machine has.
    pub const UNLIMITED: Self = Self { bytes: u64::MAX, process_bytes: 0 };
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queued_requests_max: 16_384,
            bytes_in_max: 1 << 30,
            wait_max: Duration::from_mins(1),
            stall_factor: 10,
            stall_floor: Duration::from_secs(1),
            best_effort_floor_permille: 50,
            memory: MemoryBudget::UNLIMITED,
            eviction: Eviction::Worth,
            loads_max: 1,
        }
    }
}

//! Identifiers as distinct types, so that a step's id cannot be passed where a request's is meant.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// One loaded version of one model. Never reused while the process lives.
    ModelId(u32), "m"
);
id!(
    /// One request, from submission to its ending. Never reused while the process lives.
    RequestId(u64), "r"
);
id!(
    /// One step: a batch of requests on a lane.
    StepId(u64), "s"
);
id!(
    /// One lane of one device.
    LaneId(u16), "l"
);
id!(
    /// A process that engines run in, apart from the server's own: models that share one end together.
    HostId(u32), "h"
);
id!(
    /// Whoever shares the device with others: best-effort work is divided among tenants by weight, and each
    /// may have quotas. Interned by the shell; 0 is everybody who does not say who he is.
    TenantId(u32), "t"
);
id!(
    /// All that must be equal for two requests of one model to share a batch: every dimension but the
    /// first, of every input, and which outputs are wanted. Interned per model by the shell.
    ShapeId(u32), "shape"
);

/// What tells the tokens of a page of a sequence, and all before them, from any others: a hash of both, of
/// the kind that nobody finds two equal ones of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageHash(pub u128);

id!(
    /// A page of the keys and values of a model's sequences.
    PageId(u32), "page"
);

/// A set of processor cores, by their number in the operating system (0 to 63).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreSet(u64);

impl CoreSet {
    /// No core.
    pub const EMPTY: Self = Self(0);

    /// One more than the largest core number.
    pub const CAPACITY: usize = 64;

    /// The set of these core numbers; numbers above 63 are ignored.
    pub fn from_cores(cores: impl IntoIterator<Item = usize>) -> Self {
        Self(cores.into_iter().filter(|core| *core < Self::CAPACITY).fold(0, |set, core| set | 1 << core))
    }

    /// The number of cores in the set.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether the set has no core.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The core numbers, ascending.
    pub fn cores(self) -> impl Iterator<Item = usize> {
        (0..Self::CAPACITY).filter(move |core| self.0 & (1 << core) != 0)
    }

    /// The cores in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The cores of `self` that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether a core is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether every core of `self` is in `other`.
    pub const fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
}

impl fmt::Display for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for core in self.cores() {
            write!(f, "{separator}{core}")?;
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_sets_behave_as_sets() {
        let both = CoreSet::from_cores([0, 1]);
        let one = CoreSet::from_cores([1, 64]);
        assert_eq!((both.len(), one.len(), both.to_string().as_str()), (2, 1, "0,1"));
        assert!(one.is_subset(both) && !both.is_subset(one) && CoreSet::EMPTY.is_subset(one));
        assert!(both.overlaps(CoreSet::from_cores([1, 5])) && !both.overlaps(CoreSet::from_cores([2])));
        assert_eq!(both.without(one), CoreSet::from_cores([0]));
        assert_eq!(one.union(CoreSet::from_cores([0])), both);
    }
}

//! The memory of a model's packed weights: one piece, in large pages.
//!
//! A step reads all weights from their first byte to their last. In pages of 4 KiB it would spend a tenth of
//! its time on finding pages, so the system is asked for pages of 2 MiB, which it can only give where one
//! piece is large; single matrices are not.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{MmapMut, MmapRaw};

use crate::format::Line;

/// Memory that matrices take their parts of, in the order in which they are packed.
pub struct Slab {
    memory: MmapRaw,
    lines: usize,
    taken: AtomicUsize,
}

/// A part of a slab, of which there is no other owner.
pub(crate) struct Lines {
    slab: Arc<Slab>,
    start: usize,
    count: usize,
}

impl Slab {
    /// Memory for `bytes` of packed matrices, zero and not yet touched.
    ///
    /// # Errors
    /// What the operating system answered.
    pub fn new(bytes: usize) -> io::Result<Arc<Self>> {
        let lines = bytes.div_ceil(size_of::<Line>());
        let size = lines.checked_mul(size_of::<Line>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // The system refuses an empty piece.
        let memory = MmapRaw::from(MmapMut::map_anon(size.max(1))?);
        // Where there are no large pages small ones do.
        #[cfg(target_os = "linux")]
        let _no_matter = memory.advise(Advice::HugePage);
        Ok(Arc::new(Self { memory, lines, taken: AtomicUsize::new(0) }))
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.lines * size_of::<Line>()
    }

    /// The next `count` lines, if so many are left.
    pub(crate) fn take(self: &Arc<Self>, count: usize) -> Option<Lines> {
        let after = |taken: usize| taken.checked_add(count).filter(|after| *after <= self.lines);
        let start = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).ok()?;
        Some(Lines { slab: Arc::clone(self), start, count })
    }
}

impl Lines {
    fn first(&self) -> *mut Line {
        // Within the slab, or one beyond its end if there are none.
        self.slab.memory.as_mut_ptr().cast::<Line>().wrapping_add(self.start)
    }
}

impl Deref for Lines {
    type Target = [Line];

    #[inline(always)]
    fn deref(&self) -> &[Line] {
        // SAFETY: `start` and `count` are within the mapping, which `slab` keeps, begins at a page and was
        // zero at first; any bytes are lines. No other `Lines` has these, as `taken` only grows, and whoever
        // writes them needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.first(), self.count) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above; `&mut self` is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.first(), self.count) }
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("lines", &self.lines).field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines")
            .field("start", &self.start)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_touch_and_outlive_the_slab() {
        let slab = Slab::new(5 * 64).unwrap();
        let (mut a, mut b) = (slab.take(2).unwrap(), slab.take(3).unwrap());
        assert!(slab.take(1).is_none() && slab.take(usize::MAX).is_none());
        assert!(slab.take(0).unwrap().is_empty());
        drop(slab);
        a.fill(Line([1; 64]));
        b.fill(Line([2; 64]));
        assert!(a.len() == 2 && a.iter().all(|line| line.0 == [1; 64]));
        assert!(b.len() == 3 && b.iter().all(|line| line.0 == [2; 64]));
        assert_eq!(a.as_ptr().align_offset(64), 0);
        assert!(Slab::new(0).unwrap().take(1).is_none());
        assert!(Slab::new(usize::MAX).is_err());
    }
}

//! The pages that a model keeps the keys and values of its sequences in, and who has which.
//!
//! A page whose content is known, because it was computed for the beginning of a prompt, is shared by all
//! sequences of one tenant that begin in the same way ("automatic prefix caching" as in vLLM; Kwon et al.,
//! SOSP 2023, section 4.4). It is written once and read by many. When nobody has it any more it stays, until
//! another page is wanted and it is the one that was left longest ago. Pages that are still written to belong
//! to one sequence alone, so nothing is ever copied.

use std::collections::BTreeMap;

use quadrant_types::{PageHash, PageId, TenantId};
use rustc_hash::FxHashMap;

/// What is in a page: whose prompt begins like this. Tenants learn nothing of each other's prompts, not even
/// by how long an answer takes.
pub(crate) type Content = (TenantId, PageHash);

/// The pages of one model.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    all: Vec<Page>,
    /// Those with nothing in them that is of use.
    blank: Vec<PageId>,
    /// Where known content is.
    known: FxHashMap<Content, PageId>,
    /// Pages that nobody has and whose content is known, by when they were left.
    idle: BTreeMap<u64, PageId>,
    /// Counts how often a page was left.
    left: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// Sequences that have it.
    users: u32,
    content: Option<Content>,
    /// Its place among the idle ones.
    left_at: u64,
}

impl Pages {
    pub(crate) fn new(count: u32) -> Self {
        Self {
            all: vec![Page::default(); count as usize],
            // Low numbers first: what was never used need not be there.
            blank: (0..count).rev().map(PageId).collect(),
            known: FxHashMap::default(),
            idle: BTreeMap::new(),
            left: 0,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Pages that can be taken.
    pub(crate) fn free(&self) -> usize {
        self.blank.len() + self.idle.len()
    }

    /// A page for one sequence alone, whatever is in it.
    pub(crate) fn take(&mut self) -> Option<PageId> {
        let page = self.blank.pop().or_else(|| {
            let (_, page) = self.idle.pop_first()?;
            let content = self.of(page).content.take();
            self.known.remove(&content.expect("what is idle has a content"));
            Some(page)
        })?;
        self.of(page).users = 1;
        Some(page)
    }

    /// The page with this content, if there is one.
    pub(crate) fn find(&self, content: Content) -> Option<PageId> {
        self.known.get(&content).copied()
    }

    /// Whether nobody has this page, so that sharing it makes one page less free.
    pub(crate) fn is_idle(&self, page: PageId) -> bool {
        self.all[page.0 as usize].users == 0
    }

    /// Whether only one sequence has this page, so that it is free when that leaves it.
    pub(crate) fn is_own(&self, page: PageId) -> bool {
        self.all[page.0 as usize].users == 1
    }

    /// One more sequence has a page that was found.
    pub(crate) fn share(&mut self, page: PageId) {
        let of = self.of(page);
        of.users += 1;
        let (first, left_at) = (of.users == 1, of.left_at);
        if first {
            self.idle.remove(&left_at);
        }
    }

    /// This page has been written in full, with this. Does nothing if there is another of the same content.
    pub(crate) fn publish(&mut self, page: PageId, content: Content) {
        if let std::collections::hash_map::Entry::Vacant(place) = self.known.entry(content) {
            place.insert(page);
            self.of(page).content = Some(content);
        }
    }

    /// A sequence leaves a page.
    pub(crate) fn leave(&mut self, page: PageId) {
        self.left += 1;
        let left = self.left;
        let of = self.of(page);
        of.users -= 1;
        if of.users > 0 {
            return;
        }
        of.left_at = left;
        if of.content.is_some() {
            self.idle.insert(left, page);
        } else {
            self.blank.push(page);
        }
    }

    /// For the invariants: every page is with somebody, idle or blank, and what is known is where it is said
    /// to be.
    pub(crate) fn is_sound(&self, users: impl Fn(PageId) -> u32) -> bool {
        let used = self.all.iter().filter(|page| page.users > 0).count();
        let contents = self.all.iter().filter(|page| page.content.is_some()).count();
        let is_there = |(content, page): (&Content, &PageId)| {
            self.all.get(page.0 as usize).is_some_and(|page| page.content == Some(*content))
        };
        used + self.idle.len() + self.blank.len() == self.all.len()
            && contents == self.known.len()
            && self.known.iter().all(is_there)
            && (0..).map(PageId).zip(&self.all).all(|(id, page)| page.users == users(id))
    }

    fn of(&mut self, page: PageId) -> &mut Page {
        &mut self.all[page.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(tenant: u32, hash: u128) -> Content {
        (TenantId(tenant), PageHash(hash))
    }

    #[test]
    fn what_is_known_is_shared_and_stays_while_there_is_room() {
        let mut pages = Pages::new(3);
        let first = pages.take().unwrap();
        assert_eq!(first, PageId(0), "low numbers first");
        pages.publish(first, content(1, 7));
        assert_eq!(pages.find(content(2, 7)), None, "another tenant's");
        pages.share(pages.find(content(1, 7)).unwrap());
        pages.leave(first);
        assert_eq!((pages.free(), pages.is_own(first)), (2, true));
        pages.leave(first);
        assert_eq!((pages.free(), pages.is_idle(first)), (3, true));
        // Blank pages go first, then what was left longest ago.
        assert_eq!([pages.take(), pages.take()], [Some(PageId(1)), Some(PageId(2))]);
        assert_eq!(pages.find(content(1, 7)), Some(first));
        assert_eq!((pages.take(), pages.find(content(1, 7)), pages.take()), (Some(first), None, None));
        assert!(pages.is_sound(|_| 1));
    }

    #[test]
    fn the_page_left_longest_ago_goes_first() {
        let mut pages = Pages::new(2);
        for hash in [1, 2] {
            let page = pages.take().unwrap();
            pages.publish(page, content(0, hash));
        }
        let [one, two] = [1, 2].map(|hash| pages.find(content(0, hash)).unwrap());
        pages.leave(one);
        pages.leave(two);
        pages.share(one);
        pages.leave(one);
        assert_eq!(pages.take(), Some(two));
        assert!(pages.find(content(0, 1)).is_some() && pages.find(content(0, 2)).is_none());
    }

    #[test]
    fn of_two_equal_pages_one_is_known() {
        let mut pages = Pages::new(2);
        let [one, two] = [pages.take().unwrap(), pages.take().unwrap()];
        pages.publish(one, content(0, 1));
        pages.publish(two, content(0, 1));
        pages.leave(two);
        pages.leave(one);
        assert_eq!((pages.find(content(0, 1)), pages.free()), (Some(one), 2));
        assert!(pages.is_sound(|_| 0));
    }
}

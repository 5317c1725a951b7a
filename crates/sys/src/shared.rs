//! Memory that two processes share, without a name: a file in memory whose descriptor is passed on.
//!
//! The size is fixed and sealed when it is made, so no side can cut it off under the other, which would end
//! whoever touches the missing part. Who must not trust the other side only ever copies in and out
//! ([`SharedRegion::write`], [`SharedRegion::read`]); who may trust it reads in place
//! ([`SharedRegion::view`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;

/// A shared piece of memory, mapped into this process for as long as this lives.
#[derive(Debug)]
pub struct SharedRegion {
    file: OwnedFd,
    mapping: mapping::Mapping,
}

impl SharedRegion {
    /// Makes a region of `bytes` zeros, all of which are there at once: no first touch costs anything.
    ///
    /// # Errors
    /// What the operating system answered; `Unsupported` where it has no such memory.
    pub fn create(bytes: usize) -> io::Result<Self> {
        let file = mapping::sealed_file(bytes)?;
        let mapping = mapping::Mapping::new(&file, bytes)?;
        Ok(Self { file, mapping })
    }

    /// Maps a region that another process made.
    ///
    /// # Errors
    /// If it is smaller than `bytes` or could become so, or what the operating system answered.
    pub fn open(file: OwnedFd, bytes: usize) -> io::Result<Self> {
        mapping::check_sealed(&file, bytes)?;
        let mapping = mapping::Mapping::new(&file, bytes)?;
        Ok(Self { file, mapping })
    }

    /// Its size.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Whether it has no bytes; a region never is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is passed on to the other process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Copies `bytes` to `offset`; false, and nothing copied, if they do not fit there.
    #[must_use]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let fits = self.fits(offset, bytes.len());
        if fits {
            self.mapping.copy_in(offset, bytes);
        }
        fits
    }

    /// A copy of `length` bytes from `offset`, which no other process can change; `None` if they are not
    /// all within the region.
    pub fn read(&self, offset: usize, length: usize) -> Option<Vec<u8>> {
        self.fits(offset, length).then(|| self.mapping.copy_out(offset, length))
    }

    /// The bytes where they lie; `None` if they are not all within the region.
    ///
    /// Only for the side that trusts the other one not to write there while this is in use: the child of a
    /// server, which is given a step and answers it before anything is written again.
    pub fn view(self: &Arc<Self>, offset: usize, length: usize) -> Option<Bytes> {
        let view = || View { region: Arc::clone(self), offset, length };
        self.fits(offset, length).then(|| Bytes::from_owner(view()))
    }

    /// Where in the region `bytes` lie, if they are a part of it.
    pub fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = (bytes.as_ptr() as usize).checked_sub(self.mapping.address())?;
        self.fits(offset, bytes.len()).then_some(offset)
    }

    fn fits(&self, offset: usize, length: usize) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.len())
    }
}

/// Keeps the region mapped while somebody reads it in place.
struct View {
    region: Arc<SharedRegion>,
    offset: usize,
    length: usize,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        self.region.mapping.in_place(self.offset, self.length)
    }
}

#[cfg(target_os = "linux")]
mod mapping {
    //! The system calls.

    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::ptr::NonNull;

    /// Neither smaller nor larger, for good.
    const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

    #[derive(Debug)]
    pub(super) struct Mapping {
        base: NonNull<u8>,
        length: usize,
    }

    // SAFETY: the mapping belongs to no thread; it is unmapped once, by whoever drops it last.
    unsafe impl Send for Mapping {}
    // SAFETY: what is done through `&self` copies bytes from and to memory that stays mapped. Another thread
    // or process may change them meanwhile; then the copy has some of both, which the caller must check.
    unsafe impl Sync for Mapping {}

    pub(super) fn sealed_file(bytes: usize) -> io::Result<OwnedFd> {
        let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the name is a text that ends with a zero byte; the kernel copies it.
        let file =
            unsafe { libc::memfd_create(c"quadrant".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        let file = owned(file)?;
        // SAFETY: sets the size of a file that is open and ours.
        check(unsafe { libc::ftruncate(file.as_raw_fd(), length) })?;
        // SAFETY: sets flags of a file that is open and ours.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) })?;
        Ok(file)
    }

    pub(super) fn check_sealed(file: &OwnedFd, bytes: usize) -> io::Result<()> {
        // SAFETY: reads flags of an open file.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return Err(io::Error::other("the shared memory could be cut off"));
        }
        // SAFETY: moves a position that nobody uses, to learn the size of an open file.
        let length = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
        if usize::try_from(length).is_ok_and(|length| length >= bytes) {
            return Ok(());
        }
        Err(io::Error::other(format!("the shared memory has `{length}` bytes, fewer than `{bytes}`")))
    }

    impl Mapping {
        pub(super) fn new(file: &OwnedFd, length: usize) -> io::Result<Self> {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
            // SAFETY: asks for a new mapping wherever there is room; nothing that exists is touched. That the
            // file has so many bytes, for good, was seen to before.
            let base =
                unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, file.as_raw_fd(), 0) };
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
            Ok(Self { base, length })
        }

        pub(super) fn len(&self) -> usize {
            self.length
        }

        pub(super) fn address(&self) -> usize {
            self.base.as_ptr() as usize
        }

        pub(super) fn copy_in(&self, offset: usize, bytes: &[u8]) {
            assert!(offset + bytes.len() <= self.length, "the caller has looked");
            // SAFETY: the offset is within the mapping.
            let to = unsafe { self.base.as_ptr().add(offset) };
            // SAFETY: the bytes fit between `to` and the end of the mapping, which is writable; a slice that
            // exists does not overlap with it unless it is a view, and views are only read by the other side.
            unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
        }

        pub(super) fn copy_out(&self, offset: usize, length: usize) -> Vec<u8> {
            assert!(offset + length <= self.length, "the caller has looked");
            let mut copy = Vec::with_capacity(length);
            // SAFETY: the offset is within the mapping.
            let from = unsafe { self.base.as_ptr().add(offset) };
            // SAFETY: `length` bytes lie between `from` and the end of the mapping, and the new vector has
            // room for as many. No reference to the shared bytes is made, so that they may change meanwhile.
            unsafe { std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr(), length) };
            // SAFETY: so many bytes were just written; any value is a byte.
            unsafe { copy.set_len(length) };
            copy
        }

        pub(super) fn in_place(&self, offset: usize, length: usize) -> &[u8] {
            assert!(offset + length <= self.length, "the caller has looked");
            // SAFETY: the offset is within the mapping.
            let from = unsafe { self.base.as_ptr().add(offset) };
            // SAFETY: so many bytes lie there, and the mapping stays for as long as `self`. That nobody
            // writes there meanwhile is what `SharedRegion::view` asks of its caller; a program of ours is at
            // the other side.
            unsafe { std::slice::from_raw_parts(from, length) }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: unmaps what `new` mapped, once; nobody can use it any more: all uses borrow `self`.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
        }
    }

    fn owned(file: libc::c_int) -> io::Result<OwnedFd> {
        check(file)?;
        // SAFETY: it was just opened, and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(file) })
    }

    fn check(result: libc::c_int) -> io::Result<()> {
        if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(not(target_os = "linux"))]
mod mapping {
    //! There is no such memory on this operating system.

    use std::io;
    use std::os::fd::OwnedFd;

    #[derive(Debug)]
    pub(super) enum Mapping {}

    pub(super) fn sealed_file(_bytes: usize) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn check_sealed(_file: &OwnedFd, _bytes: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    impl Mapping {
        pub(super) fn new(_file: &OwnedFd, _length: usize) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn len(&self) -> usize {
            match *self {}
        }

        pub(super) fn address(&self) -> usize {
            match *self {}
        }

        pub(super) fn copy_in(&self, _offset: usize, _bytes: &[u8]) {
            match *self {}
        }

        pub(super) fn copy_out(&self, _offset: usize, _length: usize) -> Vec<u8> {
            match *self {}
        }

        pub(super) fn in_place(&self, _offset: usize, _length: usize) -> &[u8] {
            match *self {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_same_bytes() {
        let ours = SharedRegion::create(10_000).unwrap();
        let theirs = Arc::new(SharedRegion::open(ours.file().try_clone_to_owned().unwrap(), 10_000).unwrap());
        assert!(ours.write(9_995, b"hello"));
        let view = theirs.view(9_995, 5).unwrap();
        assert_eq!(&view[..], b"hello");
        assert_eq!(theirs.offset_of(&view), Some(9_995));
        assert_eq!(theirs.offset_of(b"elsewhere"), None);
        assert!(theirs.write(0, b"answer"));
        assert_eq!(ours.read(0, 6).unwrap(), b"answer");
    }

    #[test]
    fn nothing_outside_can_be_reached() {
        let region = Arc::new(SharedRegion::create(100).unwrap());
        for (offset, length) in [(0, 101), (100, 1), (101, 0), (usize::MAX, 2), (1, usize::MAX)] {
            assert!(region.read(offset, length).is_none(), "{offset} {length}");
            assert!(region.view(offset, length).is_none(), "{offset} {length}");
        }
        assert!(!region.write(98, b"abc"));
        assert_eq!(region.read(98, 2).unwrap(), [0, 0]);
        assert_eq!(region.read(100, 0).unwrap(), [0_u8; 0]);
    }

    #[test]
    fn a_region_that_could_be_cut_off_is_not_mapped() {
        let region = SharedRegion::create(100).unwrap();
        let file = || region.file().try_clone_to_owned().unwrap();
        assert!(SharedRegion::open(file(), 100).is_ok());
        assert!(SharedRegion::open(file(), 101).unwrap_err().to_string().contains("fewer"));
        let path = std::env::temp_dir().join(format!("quadrant-shared-{}", std::process::id()));
        std::fs::write(&path, [0; 100]).unwrap();
        let plain = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(SharedRegion::open(plain.into(), 100).unwrap_err().to_string().contains("cut off"));
    }
}

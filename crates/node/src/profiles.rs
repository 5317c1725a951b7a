//! What was measured of models survives a restart: a folder with a small file for each model, engine and
//! machine, so that a server that starts again serves at once what it knew.
//!
//! A file is used only if it was measured of the same bytes, by the same engine, on the same machine, and
//! with the same being asked; anything else in the folder is at most a reason to measure again. Nothing
//! here fails a load. Files are written aside and renamed, and the oldest go when there are too many.

mod file;

pub(crate) use file::MemoryLines;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use quadrant_engine::{ProbeOptions, Profile};
use sha2::{Digest, Sha256};

/// Files that are kept; each has a few kilobytes.
const FILES_MAX: usize = 1_000;
/// A file of ours is far smaller; more is not read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How the names of files begin that are being written.
const UNFINISHED: &str = ".profile-";
const EXTENSION: &str = "toml";

/// A folder of profiles.
#[derive(Clone, Debug)]
pub(crate) struct ProfileStore {
    folder: PathBuf,
    machine: Machine,
}

/// What a profile holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProfileKey {
    /// SHA-256 of the model file in hexadecimal.
    pub(crate) model_sha256: String,
    /// The engine's name and version.
    pub(crate) engine: String,
    /// Where it computes.
    pub(crate) machine: Machine,
}

/// What of a machine decides how long a step takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) processor: String,
    /// Cores of the machine.
    pub(crate) cores: usize,
    /// Cores that compute steps.
    pub(crate) device_cores: usize,
}

/// What the store has for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// A profile that holds.
    Fits(Profile),
    /// Nothing, or a profile of the same model for which something else was asked.
    Nothing,
    /// A file that cannot be used, with the reason.
    Unusable(String),
}

impl Machine {
    /// This machine, of which `device_cores` compute.
    pub(crate) fn this(device_cores: usize) -> Self {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(device_cores, usize::from);
        let listed = text.lines().filter(|line| line.starts_with("processor")).count();
        Self {
            processor: processor_name(&text),
            cores: if listed > 0 { listed } else { cores },
            device_cores,
        }
    }
}

/// The processor's name as Linux tells it: on x86 in a line of its own, on ARM by numbers.
fn processor_name(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let values = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        values.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
    };
    let numbers = ["CPU implementer", "CPU part", "CPU variant"].map(|name| field(name).unwrap_or("?"));
    match field("model name") {
        Some(name) => name.to_owned(),
        None if numbers == ["?"; 3] => std::env::consts::ARCH.to_owned(),
        None => format!("{} {}", std::env::consts::ARCH, numbers.join(" ")),
    }
}

impl ProfileStore {
    /// The store in `folder`, which is made when something is stored.
    pub(crate) fn new(folder: PathBuf, device_cores: usize) -> Self {
        Self { folder, machine: Machine::this(device_cores) }
    }

    /// The key of the model file at `path`; reads the whole file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn key(&self, path: &Path, engine: String) -> io::Result<ProfileKey> {
        Ok(ProfileKey { model_sha256: sha256(path)?, engine, machine: self.machine.clone() })
    }

    /// The profile for this key, if it was measured with the same being asked.
    pub(crate) fn find(&self, key: &ProfileKey, asked: &ProbeOptions) -> Stored {
        let path = self.path(key);
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Stored::Nothing,
            Err(error) => return Stored::Unusable(format!("`{}`: {error}", path.display())),
        };
        match file::parse(&text, key, asked) {
            Ok(Some(profile)) => Stored::Fits(profile),
            Ok(None) => Stored::Nothing,
            Err(reason) => Stored::Unusable(format!("`{}`: {reason}", path.display())),
        }
    }

    /// Keeps a profile in the place of an earlier one, and says where.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub(crate) fn keep(
        &self,
        key: &ProfileKey,
        asked: &ProbeOptions,
        profile: &Profile,
    ) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.folder)?;
        let text = file::print(key, asked, profile).map_err(io::Error::other)?;
        let mut unfinished = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder)?;
        unfinished.write_all(text.as_bytes())?;
        let path = self.path(key);
        unfinished.persist(&path)?;
        self.remove_oldest(FILES_MAX)?;
        Ok(path)
    }

    fn path(&self, key: &ProfileKey) -> PathBuf {
        let ProfileKey { model_sha256, engine, machine } = key;
        let Machine { processor, cores, device_cores } = machine;
        let parts = format!("{model_sha256}\n{engine}\n{processor}\n{cores}\n{device_cores}");
        self.folder.join(hexadecimal(&Sha256::digest(parts))).with_extension(EXTENSION)
    }

    /// Leaves this many of the store's own files, the youngest. What else lies in the folder is not ours.
    fn remove_oldest(&self, files_max: usize) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(is_own) {
                files.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        files.sort_unstable();
        for (_, path) in files.iter().take(files.len().saturating_sub(files_max)) {
            match fs::remove_file(path) {
                // Another process may have been quicker.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => (),
            }
        }
        Ok(())
    }
}

fn is_own(name: &str) -> bool {
    let digest = name.strip_suffix(EXTENSION).and_then(|name| name.strip_suffix('.')).unwrap_or_default();
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest || name.starts_with(UNFINISHED)
}

fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("its `{bytes}` bytes are more than `{FILE_BYTES_MAX}`")));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut piece = vec![0; 256 << 10];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hexadecimal(&digest.finalize())),
            bytes => digest.update(&piece[..bytes]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use quadrant_engine::{Batching, Cost, Occupancy, Peak};

    use super::*;

    fn key(model: u8) -> ProfileKey {
        let machine = Machine { processor: "Xeon \"x\" = 1".into(), cores: 8, device_cores: 2 };
        ProfileKey { model_sha256: hexadecimal(&[model; 32]), engine: "onnxruntime 1.32".into(), machine }
    }

    fn profile() -> Profile {
        let step = Duration::from_nanos(1_234_567);
        Profile {
            width: 1,
            widths: vec![1, 2],
            batches: true,
            rows_max: 4,
            costs: vec![
                Cost { width: 1, rows: 1, beside: false, step },
                Cost { width: 1, rows: 1, beside: true, step: 2 * step },
                Cost { width: 2, rows: 1, beside: false, step },
            ],
            shapes: vec![[1, 3, 224, 224][..].into(), [1][..].into()],
            reason: "it is \"best\"\nso".into(),
            sequences: None,
            occupancy: Some(Occupancy {
                load_time: step,
                load_bytes: 9_000,
                loaded_bytes: 5_000,
                peaks: vec![Peak { width: 2, rows: 1, bytes: 7_000 }],
            }),
        }
    }

    fn store(folder: &tempfile::TempDir) -> ProfileStore {
        ProfileStore::new(folder.path().join("profiles"), 2)
    }

    #[test]
    fn a_profile_is_found_again_for_the_same_key_and_wish_only() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let asked = ProbeOptions::default();
        assert_eq!(store.find(&key(1), &asked), Stored::Nothing);
        store.keep(&key(1), &asked, &profile()).unwrap();
        assert_eq!(store.find(&key(1), &asked), Stored::Fits(profile()));
        // How long measuring may take is no wish of what is measured.
        let longer = ProbeOptions { budget: Duration::from_secs(60), ..asked };
        assert_eq!(store.find(&key(1), &longer), Stored::Fits(profile()));
        for other in [
            ProbeOptions { width: Some(1), ..asked },
            ProbeOptions { rows_max: 8, ..asked },
            ProbeOptions { batching: Batching::Never, ..asked },
        ] {
            assert_eq!(store.find(&key(1), &other), Stored::Nothing);
        }
        let machine = Machine { device_cores: 1, ..key(1).machine };
        let other_machine = ProfileKey { machine, ..key(1) };
        let other_engine = ProfileKey { engine: "rten 1".into(), ..key(1) };
        for other in [key(2), other_machine, other_engine] {
            assert_eq!(store.find(&other, &asked), Stored::Nothing);
        }
        let one_wide = Profile { widths: vec![2], width: 2, ..profile() };
        store.keep(&key(1), &asked, &one_wide).unwrap();
        assert_eq!(store.find(&key(1), &asked), Stored::Fits(one_wide));
        assert_eq!(
            fs::read_dir(&store.folder).unwrap().count(),
            1,
            "it is replaced, and nothing is left over"
        );
    }

    #[test]
    fn damaged_and_foreign_files_have_a_reason_and_are_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let asked = ProbeOptions::default();
        let path = store.keep(&key(1), &asked, &profile()).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        let check = |content: &[u8], expect: &str| {
            fs::write(&path, content).unwrap();
            let Stored::Unusable(reason) = store.find(&key(1), &asked) else {
                panic!("`{expect}`: {:?}", store.find(&key(1), &asked))
            };
            assert!(reason.contains(expect) && reason.contains(path.to_str().unwrap()), "{reason}");
        };
        for length in 0..whole.len() {
            check(&whole.as_bytes()[..length], "not complete");
        }
        check(b"\xff\xfe", "UTF-8");
        check(&[b'#'; 2 << 20], "bytes are more than");
        check(whole.replace("version = 1", "version = 2").as_bytes(), "version `2`");
        check(whole.replace("cores = 8", "cores = 9").as_bytes(), "another model, engine or machine");
        check(whole.replace("widths = [1, 2]", "widths = [2, 1]").as_bytes(), "`widths`");
        check(whole.replace("widths = [1, 2]", "widths = [1, 64]").as_bytes(), "`widths`");
        check(whole.replace("width = 1\nwidths", "width = 3\nwidths").as_bytes(), "`width`");
        check(whole.replace("rows_max = 4", "rows_max = 0").as_bytes(), "`rows_max`");
        check(whole.replace("rows_max = 4", "rows_max = -4").as_bytes(), "`-4`");
        check(whole.replace("[profile]", "[other]").as_bytes(), "other");
        let (before_costs, _) = whole.split_once("[[costs]]").unwrap();
        check(format!("{before_costs}# end\n").as_bytes(), "costs");
        check(b"not toml\n# end\n", "expected");
        store.keep(&key(1), &asked, &profile()).unwrap();
        assert_eq!(store.find(&key(1), &asked), Stored::Fits(profile()));
    }

    #[test]
    fn the_oldest_files_of_the_store_go_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let asked = ProbeOptions::default();
        let mut paths = Vec::new();
        for model in 0..6 {
            let path = store.keep(&key(model), &asked, &profile()).unwrap();
            let age = Duration::from_secs(1_000 - u64::from(model));
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(10_000) - age).unwrap();
            paths.push(path);
        }
        let leftover = store.folder.join(".profile-x");
        let foreign = [store.folder.join("notes.toml"), store.folder.join("README")];
        for path in foreign.iter().chain([&leftover]) {
            let file = File::create(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        store.remove_oldest(4).unwrap();
        let left: Vec<_> = paths.iter().map(|path| path.exists()).collect();
        assert_eq!(left, [false, false, true, true, true, true]);
        assert!(foreign.iter().all(|path| path.exists()) && !leftover.exists());
    }

    #[test]
    fn processors_have_a_name() {
        let check = |cpuinfo: &str, expect: &str| assert_eq!(processor_name(cpuinfo), expect);
        check("processor\t: 0\nmodel name\t: Some Xeon @ 2 GHz\nmodel name\t: other\n", "Some Xeon @ 2 GHz");
        let arm = "processor : 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n";
        check(arm, &format!("{} 0x41 0xd4f ?", std::env::consts::ARCH));
        check("", std::env::consts::ARCH);
    }

    #[test]
    fn a_key_is_the_digest_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        fs::write(&path, "hello").unwrap();
        let key = store(&folder).key(&path, "rten 1".into()).unwrap();
        assert_eq!(key.model_sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(key.machine, Machine::this(2));
        assert!(key.machine.cores >= 1 && !key.machine.processor.is_empty());
    }
}

//! Finds the models in a folder. Three layouts, told apart by looking: Triton's
//! (`NAME/[config.pbtxt]/VERSION/model.onnx`, of which the highest version is served), a bare file
//! (`NAME.onnx`, `NAME.gguf`), and a folder as Hugging Face has it (`NAME/model.safetensors`, `config.json`
//! beside it). What cannot be served is listed with its reason instead of being passed over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use quadrant_engine::ModelSource;
use quadrant_types::TensorSpec;

/// Bytes of a label file that are read; the largest known has 18,385 lines in 74 KB.
const LABELS_BYTES_MAX: u64 = 16 << 20;

/// The weights of a model whose description lies beside them.
const WEIGHTS: &str = "model.safetensors";
/// A language model, in a folder of its own.
const GGUF: &str = "model.gguf";
/// What describes them.
const DESCRIPTIONS: [&str; 4] =
    ["config.json", "tokenizer.json", "1_Pooling/config.json", "sentence_bert_config.json"];

/// One model of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The name it is served under.
    pub(crate) name: String,
    /// Its version; 0 if none was found.
    pub(crate) version: u64,
    /// Its files, or why it cannot be served.
    pub(crate) files: Result<ModelFiles, String>,
}

/// The files of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelFiles {
    /// The model itself.
    pub(crate) model: PathBuf,
    /// Triton's configuration, if there is one.
    pub(crate) config: Option<PathBuf>,
    /// The folder that label files are relative to.
    pub(crate) folder: PathBuf,
    /// The names of the classes, if a file of the usual name lies beside the model.
    pub(crate) labels: Option<PathBuf>,
}

/// The models in `folder`, by name.
///
/// # Errors
/// If the folder itself cannot be read.
pub(crate) fn scan(folder: &Path) -> io::Result<Vec<Found>> {
    let mut found = BTreeMap::new();
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let file_name = entry.file_name();
        let Some(file_name) = file_name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        let path = entry.path();
        let model = if path.is_dir() {
            Some(in_folder(file_name, &path))
        } else if ModelSource::is_model_file(&path) {
            Some(bare_file(file_name, &path, folder))
        } else {
            None
        };
        let Some(model) = model else { continue };
        let name = model.name.clone();
        let twin = found.insert(name.clone(), model);
        if twin.is_some() {
            let reason = format!("two models are called `{name}`; rename one of them");
            found.insert(name.clone(), Found { name, version: 1, files: Err(reason) });
        }
    }
    Ok(found.into_values().collect())
}

/// The model of this name in `folder`; `None` if there is none, or the folder cannot be read.
pub(crate) fn find(folder: &Path, name: &str) -> Option<Found> {
    scan(folder).ok()?.into_iter().find(|model| model.name == name)
}

/// What tells one content of a model's files from another, without reading them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<(PathBuf, u64, SystemTime)>>);

impl Stamp {
    /// As the files are now.
    pub(crate) fn of(files: &ModelFiles) -> Self {
        let ModelFiles { model, config, labels, .. } = files;
        let stamp = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((path.clone(), metadata.len(), metadata.modified().ok()?))
        };
        let is_weights = model.file_name().is_some_and(|name| name == WEIGHTS);
        let beside = if is_weights { &DESCRIPTIONS[..] } else { &[] };
        let beside = beside.iter().map(|name| model.with_file_name(name));
        let own = [Some(model), config.as_ref(), labels.as_ref()].into_iter().flatten().map(stamp);
        Self(own.chain(beside.map(|path| stamp(&path))).collect())
    }
}

fn bare_file(file_name: &str, path: &Path, folder: &Path) -> Found {
    let endings = [".emulated.toml", ".onnx", ".gguf"];
    let name = endings.into_iter().find_map(|ending| file_name.strip_suffix(ending));
    let name = name.unwrap_or(file_name).to_owned();
    let labels = existing(folder.join(format!("{name}.labels.txt")));
    let config = existing(folder.join(format!("{name}.pbtxt")));
    let files = ModelFiles { model: path.to_owned(), config, folder: folder.to_owned(), labels };
    Found { name, version: 1, files: Ok(files) }
}

fn in_folder(name: &str, folder: &Path) -> Found {
    let found = |version, files| Found { name: name.to_owned(), version, files };
    let versions = match highest_version(folder) {
        Ok(versions) => versions,
        Err(error) => return found(0, Err(format!("cannot read its folder: {error}"))),
    };
    let Some((version, version_folder)) = versions else {
        let model = folder.join(WEIGHTS);
        if model.is_file() {
            let config = existing(folder.join("config.pbtxt"));
            return found(1, Ok(ModelFiles { model, config, folder: folder.to_owned(), labels: None }));
        }
        return found(0, Err("no version: its folder has no subfolder with a number for a name".to_owned()));
    };
    let candidates =
        ["model.onnx", WEIGHTS, GGUF, "model.emulated.toml"].map(|file| version_folder.join(file));
    let Some(model) = candidates.into_iter().find(|file| file.exists()) else {
        return found(
            version,
            Err(format!("version `{version}` has no file `model.onnx`, `{WEIGHTS}` or `{GGUF}`")),
        );
    };
    let files = ModelFiles {
        model,
        config: existing(folder.join("config.pbtxt")),
        folder: folder.to_owned(),
        labels: existing(folder.join("labels.txt")),
    };
    found(version, Ok(files))
}

/// The subfolder with the highest number for a name. Numbers with leading zeros are skipped, as by Triton.
fn highest_version(folder: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let mut highest = None;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.parse::<u64>().ok().filter(|number| *number > 0 && !name.starts_with('0'));
        if let (Some(number), true) = (number, path.is_dir()) {
            highest = highest.max(Some((number, path)));
        }
    }
    Ok(highest)
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

/// The lines of a label file.
///
/// # Errors
/// Why it cannot be used, for a person.
pub(crate) fn read_labels(path: &Path) -> Result<Arc<[String]>, String> {
    let fail = |reason: &dyn std::fmt::Display| format!("label file `{}`: {reason}", path.display());
    let size = fs::metadata(path).map_err(|error| fail(&error))?.len();
    if size > LABELS_BYTES_MAX {
        return Err(fail(&format!("`{size}` bytes are more than `{LABELS_BYTES_MAX}`")));
    }
    let text = fs::read_to_string(path).map_err(|error| fail(&error))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Whether `labels` may name the classes of `output`: its last dimension has as many, or is free.
pub(crate) fn labels_fit(labels: &[String], output: &TensorSpec) -> bool {
    match output.dims.last() {
        Some(quadrant_types::Dim::Fixed(classes)) => *classes == labels.len(),
        Some(quadrant_types::Dim::Symbol(_) | quadrant_types::Dim::Any) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        folder
    }

    fn names(files: &[&str]) -> Vec<(String, u64, Result<String, String>)> {
        let folder = tree(files);
        let show = |found: Found| {
            let path = found
                .files
                .map(|files| files.model.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned());
            (found.name, found.version, path)
        };
        scan(folder.path()).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn every_layout_is_found() {
        let found = names(&[
            "a.onnx",
            "b/1/model.onnx",
            "b/12/model.onnx",
            "b/03/model.onnx",
            "b/config.pbtxt",
            "c.emulated.toml",
            "d/model.safetensors",
            "d/config.json",
            "e/2/model.safetensors",
            "f.gguf",
            "g/1/model.gguf",
            "readme.md",
            ".hidden.onnx",
        ]);
        let expect = [
            ("a".to_owned(), 1, Ok("a.onnx".to_owned())),
            ("b".to_owned(), 12, Ok("b/12/model.onnx".to_owned())),
            ("c".to_owned(), 1, Ok("c.emulated.toml".to_owned())),
            ("d".to_owned(), 1, Ok("d/model.safetensors".to_owned())),
            ("e".to_owned(), 2, Ok("e/2/model.safetensors".to_owned())),
            ("f".to_owned(), 1, Ok("f.gguf".to_owned())),
            ("g".to_owned(), 1, Ok("g/1/model.gguf".to_owned())),
        ];
        assert_eq!(found, expect);
    }

    #[test]
    fn what_cannot_be_served_has_a_reason() {
        for (files, name, reason) in [
            (&["a/config.pbtxt"][..], "a", "no version"),
            (
                &["b/2/model.plan"],
                "b",
                "version `2` has no file `model.onnx`, `model.safetensors` or `model.gguf`",
            ),
            (&["c.onnx", "c/1/model.onnx"], "c", "two models are called `c`"),
        ] {
            let found = names(files);
            let (found_name, _, outcome) = &found[0];
            assert_eq!((found.len(), found_name.as_str()), (1, name));
            assert!(outcome.as_ref().unwrap_err().contains(reason), "{outcome:?}");
        }
    }

    #[test]
    fn labels_name_an_output_with_as_many_classes() {
        let output = |dims: &[quadrant_types::Dim]| TensorSpec {
            name: "o".into(),
            datatype: quadrant_types::DataType::Fp32,
            dims: dims.to_vec(),
        };
        let labels = ["cat".to_owned(), "dog".to_owned()];
        assert!(labels_fit(&labels, &output(&[quadrant_types::Dim::Any, quadrant_types::Dim::Fixed(2)])));
        assert!(!labels_fit(&labels, &output(&[quadrant_types::Dim::Fixed(3)])));
    }
}

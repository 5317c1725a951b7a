//! What was measured of a model at one start is used at the next, and measured again where it does not fit.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quadrant_node::{Batching, Config, ModelProfile, ModelSettings, Node, profile_models};
use quadrant_policy::{Discipline, Limits};

const MODEL: &str = r#"
latency = { kind = "lognormal", median_us = 200, p99_us = 900 }
inputs = [{ name = "x", datatype = "FP32", dims = ["batch", 4] }]
outputs = [{ name = "y", from = "x" }]
"#;

fn config(folder: &Path) -> Config {
    let models_dir = folder.join("models");
    fs::create_dir_all(&models_dir).unwrap();
    fs::write(models_dir.join("m.emulated.toml"), MODEL).unwrap();
    Config {
        models_dir,
        cores: quadrant_sys::allowed_cores().unwrap(),
        onnxruntime: None,
        engine_host: None,
        discipline: Discipline::Quadrant,
        tenants: BTreeMap::new(),
        limits: Limits::default(),
        probe_budget: Duration::from_millis(30),
        poll: None,
        profiles_dir: Some(folder.join("profiles")),
        defaults: ModelSettings::default(),
        models: BTreeMap::new(),
    }
}

/// Starts a node and says why its model is served as it is. The text has all measured times, so the same
/// text is the same measurement.
async fn rationale(config: &Config) -> String {
    let node = Node::start(config.clone()).unwrap();
    let ready = async {
        while !node.handle().is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.unwrap();
    node.handle().find("m", None).unwrap().rationale.clone()
}

fn stored(config: &Config) -> Vec<PathBuf> {
    let folder = config.profiles_dir.as_ref().unwrap();
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn a_second_start_does_not_measure_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let first = rationale(&config).await;
    assert_eq!(stored(&config).len(), 1);
    assert_eq!(rationale(&config).await, first);
    let mut off = config.clone();
    off.defaults.batching = Some(Batching::Off);
    let alone = rationale(&off).await;
    assert!(alone != first && alone.contains("the configuration forbids it"), "{alone}");
    assert_eq!(rationale(&off).await, alone);
    // Another file under the same name is another model.
    fs::write(config.models_dir.join("m.emulated.toml"), format!("seed = 2\n{MODEL}")).unwrap();
    assert_ne!(rationale(&off).await, alone);
    assert_eq!(stored(&config).len(), 2);
}

#[tokio::test]
async fn without_a_folder_or_with_a_damaged_file_it_measures() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let first = rationale(&config).await;
    let path = stored(&config).remove(0);
    fs::write(&path, "damaged").unwrap();
    let second = rationale(&config).await;
    assert_ne!(second, first);
    assert_eq!(rationale(&config).await, second, "the damaged file was overwritten");
    let nowhere = Config { profiles_dir: None, ..config.clone() };
    assert_ne!(rationale(&nowhere).await, second);
    // A folder that cannot be made costs no model its service.
    config.profiles_dir = Some(path.join("within-a-file"));
    assert!(!rationale(&config).await.is_empty());
}

#[tokio::test]
async fn what_was_profiled_is_what_serves() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let profile = |path: &Path| {
        let mut told: Vec<ModelProfile> = Vec::new();
        profile_models(&config, path, |profile| told.push(profile)).unwrap();
        assert_eq!(told.len(), 1);
        told.remove(0)
    };
    let of_folder = profile(&config.models_dir);
    assert_eq!((of_folder.name.as_str(), of_folder.engine.split(' ').next()), ("m", Some("emulated")));
    assert_eq!(of_folder.stored.unwrap().unwrap(), stored(&config)[0]);
    assert_eq!(rationale(&config).await, of_folder.outcome.unwrap().reason);
    let of_file = profile(&config.models_dir.join("m.emulated.toml"));
    assert_eq!(rationale(&config).await, of_file.outcome.unwrap().reason);
    let error = profile_models(&config, &folder.path().join("absent"), |_| ()).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
    let not_served = folder.path().join("x.txt");
    fs::write(&not_served, "x").unwrap();
    let error = profile_models(&config, &not_served, |_| ()).unwrap_err();
    assert!(error.to_string().contains("no model that would be served has this file"), "{error}");
}

#[test]
fn a_file_two_folders_down_has_the_settings_of_its_repository() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let version = config.models_dir.join("n/3");
    fs::create_dir_all(&version).unwrap();
    fs::write(version.join("model.emulated.toml"), MODEL).unwrap();
    fs::write(config.models_dir.join("n/config.pbtxt"), "name: \"n\"\nmax_batch_size: 4\n").unwrap();
    let mut rows_max = Vec::new();
    profile_models(&config, &version.join("model.emulated.toml"), |profile| {
        assert_eq!(profile.name, "n");
        rows_max.push(profile.outcome.unwrap().costs.iter().map(|cost| cost.rows).max());
    })
    .unwrap();
    assert_eq!(rows_max, [Some(4)]);
}

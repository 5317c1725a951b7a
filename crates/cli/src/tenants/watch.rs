//! Takes changes of the tenants over while the server runs: the file is looked at every second, and at once
//! on SIGHUP. What cannot be used changes nothing, and is said.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use quadrant_node::Handle;
use quadrant_server::{Shared, audit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Tenancy, watched};
use crate::settings::Settings;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells one content of a file from the next without reading it.
type Signature = Option<(SystemTime, u64, u64)>;

/// Watches until it is dropped. `present` is what holds already.
pub(crate) async fn watch(settings: Settings, mut present: Tenancy, handle: Handle, shared: Arc<Shared>) {
    let Some(path) = watched(&settings) else { return };
    let mut hangup = signal(SignalKind::hangup()).ok();
    // What was read before this may have been changed since, so the first look counts as a change.
    let (mut taken, mut seen): (Signature, Signature) = (None, None);
    loop {
        let told = tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => false,
            () = received(&mut hangup) => true,
        };
        let now = signature(path);
        // A file that is being written is left alone until it has not changed for a look.
        let settled = now == seen && now != taken;
        seen = now;
        if settled || told {
            taken = now;
            let why = if told { "SIGHUP" } else { "the file" };
            take_over(&settings, &mut present, (&handle, &shared), why);
        }
    }
}

async fn received(hangup: &mut Option<Signal>) {
    let told = match hangup {
        Some(hangup) => hangup.recv().await,
        None => None,
    };
    if told.is_none() {
        std::future::pending().await
    }
}

fn signature(path: &Path) -> Signature {
    let of = |metadata: Metadata| Some((metadata.modified().ok()?, metadata.len(), metadata.ino()));
    std::fs::metadata(path).ok().and_then(of)
}

fn take_over(settings: &Settings, present: &mut Tenancy, (handle, shared): (&Handle, &Shared), why: &str) {
    let Some(path) = watched(settings) else { return };
    let file = path.display().to_string();
    match read_again(settings, present) {
        Ok(wanted) => {
            let changes = wanted.changes(present);
            if changes.is_empty() {
                return;
            }
            wanted.apply(handle, shared);
            tracing::info!(file, "tenants changed: {changes}");
            audit::record(why, "change tenants", &file, &changes);
            *present = wanted;
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(file, error, "tenants cannot be changed, and stay as they were");
            audit::record(why, "change tenants", &file, &format!("refused: {error}"));
        }
    }
}

/// Only the tenants are taken from the file; everything else is as it was at the start.
fn read_again(settings: &Settings, present: &Tenancy) -> Result<Tenancy> {
    let wanted = match (&settings.tenants_file, &settings.read_from) {
        (None, Some(path)) => Tenancy::read(&Settings { tenants_file: None, ..Settings::read(path)? })?,
        _ => Tenancy::read(settings)?,
    };
    // An empty file is more likely a mistake than the wish to serve everybody.
    let shuts = present.is_open() || !wanted.is_open();
    ensure!(shuts, "no tenant is left, so that everybody could ask; start again if that is meant");
    Ok(wanted)
}

//! Progress bars for fetching.

use indicatif::{ProgressBar, ProgressStyle};
use quadrant_fetch::{Package, Progress};

/// One bar at a time, for the package being fetched. On anything but a terminal nothing is drawn but a
/// line for each package.
pub(crate) struct Bars {
    bar: Option<ProgressBar>,
}

impl Bars {
    pub(crate) fn new() -> Self {
        Self { bar: None }
    }
}

impl Progress for Bars {
    fn begin(&mut self, package: &Package) {
        let bytes = package.archive().map_or(0, |archive| archive.bytes);
        let style = "{msg:36} {bar:30} {bytes:>10} / {total_bytes:10} {elapsed}";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(bytes).with_style(style);
        bar.set_message(package.name);
        if bar.is_hidden() {
            tracing::info!(package = package.name, version = package.version, bytes, "fetching");
        }
        self.bar = Some(bar);
    }

    fn advance(&mut self, _package: &Package, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    fn done(&mut self, _package: &Package) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

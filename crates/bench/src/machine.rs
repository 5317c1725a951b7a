//! What the operating system says: processor time of a process, time stolen from this machine.

use std::io;
use std::time::Duration;

/// The processor time that a process has used so far, summed over its threads. Threads that ended are not
/// in it, so it suits servers with a fixed set of them.
///
/// # Errors
/// If there is no such process, or the system has no `/proc`.
pub fn cpu_time(process: u32) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end between being listed and being read.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let first = text.split_ascii_whitespace().next().and_then(|field| field.parse::<u64>().ok());
        nanoseconds += first.ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Processor time of the whole machine: stolen by the host, and all of it, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MachineTime {
    stolen: u64,
    all: u64,
}

impl MachineTime {
    /// Now; zeros where the system does not say.
    pub(crate) fn read() -> Self {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        // user nice system idle iowait irq softirq steal; what follows is contained in user and nice.
        let fields = line.split_ascii_whitespace().take(8).map(|field| field.parse().unwrap_or(0));
        let fields: Vec<u64> = fields.collect();
        Self { stolen: fields.get(7).copied().unwrap_or(0), all: fields.iter().sum() }
    }

    /// The stolen share between `earlier` and now, in percent.
    pub(crate) fn steal_percent_since(self, earlier: Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all);
        let stolen = self.stolen.saturating_sub(earlier.stolen);
        if all == 0 { 0.0 } else { 100.0 * stolen as f64 / all as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_a_share_of_all_time() {
        let before = MachineTime::parse("cpu  10 0 10 80 0 0 0 0 0 0\n");
        let after = MachineTime::parse("cpu  20 0 20 150 0 0 0 10 5 5\n");
        assert!((after.steal_percent_since(before) - 10.0).abs() < 1e-9);
        assert!(MachineTime::parse("").steal_percent_since(before).abs() < 1e-9);
    }

    #[test]
    fn this_process_uses_processor_time() {
        assert!(cpu_time(std::process::id()).unwrap() > Duration::ZERO);
        assert!(cpu_time(u32::MAX).is_err());
    }
}

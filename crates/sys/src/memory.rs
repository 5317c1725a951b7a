//! How much memory this process occupies, as the operating system counts it.
//!
//! The scheduler's ledger says what *should* be occupied; this says what is. Their difference is a metric.

use std::io;

/// The resident set of this process in bytes, from `/proc/self/statm`.
///
/// # Errors
/// `Unsupported` where there is no such file; otherwise what reading it gave.
#[cfg(target_os = "linux")]
pub fn resident_bytes() -> io::Result<u64> {
    resident("/proc/self/statm")
}

/// The resident set of another process in bytes.
///
/// # Errors
/// As [`resident_bytes`], or that there is no such process.
#[cfg(target_os = "linux")]
pub fn resident_bytes_of(process: u32) -> io::Result<u64> {
    resident(&format!("/proc/{process}/statm"))
}

#[cfg(target_os = "linux")]
fn resident(path: &str) -> io::Result<u64> {
    let statm = std::fs::read_to_string(path)?;
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
    let pages =
        pages.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "statm has no second number"))?;
    // SAFETY: `sysconf` only reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Ok(pages * u64::try_from(page).map_err(io::Error::other)?)
}

/// The resident set of this process in bytes.
///
/// # Errors
/// Always `Unsupported`: only Linux has a cheap way to know.
#[cfg(not(target_os = "linux"))]
pub fn resident_bytes() -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The resident set of another process in bytes.
///
/// # Errors
/// Always `Unsupported`: only Linux has a cheap way to know.
#[cfg(not(target_os = "linux"))]
pub fn resident_bytes_of(_process: u32) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The largest resident set that this process had since its start or since
/// [`reset_peak_resident_bytes`], in bytes, from `/proc/self/status`.
///
/// # Errors
/// What reading the file gave, or that it does not say.
pub fn peak_resident_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    kibibytes(&status, "VmHWM:")
}

/// From now on [`peak_resident_bytes`] speaks of the time from now on.
///
/// # Errors
/// What the operating system answered.
pub fn reset_peak_resident_bytes() -> io::Result<()> {
    std::fs::write("/proc/self/clear_refs", "5")
}

/// The bytes that this process may occupy: the least that its control groups allow, or what the machine has.
///
/// # Errors
/// If not even the machine's memory can be read.
pub fn memory_limit_bytes() -> io::Result<u64> {
    let machine = kibibytes(&std::fs::read_to_string("/proc/meminfo")?, "MemTotal:")?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().flat_map(limit_files);
    let limits = limits.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
    Ok(limits.fold(machine, u64::min))
}

/// The files that may hold a limit of the group in this line of `/proc/self/cgroup`, and of those around it.
/// Within a container the group's own path may not be there, but the root then is the container's.
fn limit_files(line: &str) -> Vec<std::path::PathBuf> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Vec::new();
    };
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let path = std::path::Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|group| std::path::Path::new(root).join(group).join(file)).collect()
}

/// The number of a line such as `VmHWM:   1234 kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("there is no number at `{name}`"));
    number.map(|number| number << 10).ok_or_else(missing)
}

/// Gives memory that was freed back to the operating system. The C library keeps it otherwise, and an
/// engine that loaded a model frees as much as it still holds. Takes milliseconds, for use after loading.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn return_freed_memory() {
    // SAFETY: only touches memory that nobody holds, under the allocator's own locks. Whether there was
    // any does not matter.
    unsafe { libc::malloc_trim(0) };
}

/// Does nothing where the C library has no call for it.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn return_freed_memory() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    #[test]
    fn a_group_and_those_around_it_may_have_a_limit() {
        let files =
            |line| limit_files(line).iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            files("0::/a/b"),
            ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max",]
        );
        assert_eq!(files("4:memory:/"), ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
        assert!(files("3:cpu,cpuacct:/a").is_empty() && files("").is_empty());
        let limit = memory_limit_bytes().unwrap();
        assert!(limit > 64 << 20 && limit < 1 << 50, "{limit}");
    }

    #[test]
    fn the_peak_is_remembered_and_forgotten() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let peak = peak_resident_bytes().unwrap();
        drop(touched);
        assert!(peak >= 64 << 20);
        reset_peak_resident_bytes().unwrap();
        let after = peak_resident_bytes().unwrap();
        assert!(after + (48 << 20) < peak, "{peak} bytes at most before, {after} after");
    }

    /// The tests measure one process.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    #[test]
    fn the_resident_set_grows_with_what_is_touched() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let before = resident_bytes().unwrap();
        let touched = vec![1_u8; 32 << 20];
        let after = resident_bytes().unwrap();
        assert!(after >= before + (24 << 20), "{before} bytes before, {after} after {}", touched.len());
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn freed_memory_is_given_back() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // Small pieces, since the C library returns large ones at once; one in the middle stays in use.
        let mut pieces: Vec<_> = (0..4_000_u32).map(|index| vec![index as u8; 10_000]).collect();
        let before = resident_bytes().unwrap();
        let last = pieces.pop();
        drop(pieces);
        return_freed_memory();
        let after = resident_bytes().unwrap();
        assert!(after + (16 << 20) < before, "{before} bytes before, {after} after {:?}", last.map(|l| l[0]));
    }
}

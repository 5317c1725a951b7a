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
    let statm = std::fs::read_to_string("/proc/self/statm")?;
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

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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_resident_set_grows_with_what_is_touched() {
        let before = resident_bytes().unwrap();
        let touched = vec![1_u8; 32 << 20];
        let after = resident_bytes().unwrap();
        assert!(after >= before + (24 << 20), "{before} bytes before, {after} after {}", touched.len());
    }
}

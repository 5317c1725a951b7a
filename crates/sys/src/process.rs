//! What a process that serves another one does about itself: it ends with its parent, keeps to its memory,
//! and leaves it to the parent to be told to end.

use std::io;

/// From now on the operating system kills this process when the thread that started it ends. `parent` is
/// the process that did; that it is still there is looked at afterwards.
///
/// # Errors
/// What the operating system answered, or that the parent is gone.
#[cfg(target_os = "linux")]
pub fn end_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: sets one number of this process.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    if std::os::unix::process::parent_id() == parent {
        return Ok(());
    }
    Err(io::Error::other("the process that started this one is gone"))
}

/// Limits the data of this process: its heap and every other private memory it may write to, also what it
/// has reserved and not touched. What is asked for beyond that is refused, and the engine sees the refusal.
///
/// # Errors
/// What the operating system answered.
#[cfg(target_os = "linux")]
pub fn limit_data(bytes: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the kernel only reads the two numbers.
    check(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) })
}

/// Writes no image of this process when it breaks: that takes as long as the process is large, and until it
/// is over nobody learns that it broke.
///
/// # Errors
/// What the operating system answered.
#[cfg(target_os = "linux")]
pub fn write_no_core() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel only reads the two numbers.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) })
}

/// Ignores SIGTERM and SIGINT: whoever ends a server tells all its processes, and the server still needs
/// this one to finish what it has accepted.
///
/// # Errors
/// What the operating system answered.
#[cfg(target_os = "linux")]
pub fn leave_ending_to_parent() -> io::Result<()> {
    for number in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: ignoring a signal runs no code of ours.
        if unsafe { libc::signal(number, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes this process the first that the operating system kills when memory runs out; best effort.
#[cfg(target_os = "linux")]
pub fn go_first_when_memory_runs_out() {
    // Raising it needs no privilege. Where it cannot be written the parent goes by the same rules as we do.
    std::fs::write("/proc/self/oom_score_adj", "500").unwrap_or_default();
}

#[cfg(target_os = "linux")]
fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Not on this operating system.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn end_with_parent(_parent: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Not on this operating system.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn limit_data(_bytes: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Does nothing on this operating system.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn write_no_core() -> io::Result<()> {
    Ok(())
}

/// Does nothing on this operating system.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn leave_ending_to_parent() -> io::Result<()> {
    Ok(())
}

/// Does nothing on this operating system.
#[cfg(not(target_os = "linux"))]
pub fn go_first_when_memory_runs_out() {}

//! Open files as part of a message between two processes.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Sends `bytes` with an open file, all at once; the file goes with the first of them.
///
/// # Errors
/// What the operating system answered, or `WriteZero` if it took only a part.
#[cfg(target_os = "linux")]
pub fn send_with_file(stream: &UnixStream, bytes: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let mut control = Control::default();
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let message = control.message(&mut part);
    // SAFETY: the message's control buffer is large and aligned enough for one header with one file.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    let length = u32::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: computes a length from a length.
    let header_length = unsafe { libc::CMSG_LEN(length) };
    let fields = libc::cmsghdr {
        cmsg_len: header_length as usize,
        cmsg_level: libc::SOL_SOCKET,
        cmsg_type: libc::SCM_RIGHTS,
    };
    // SAFETY: the header lies in the control buffer, which is writable and aligned for it.
    unsafe { header.write(fields) };
    // SAFETY: the place of the header's data follows it in the control buffer.
    let data = unsafe { libc::CMSG_DATA(header) }.cast::<libc::c_int>();
    // SAFETY: one number was counted in, and the place may be unaligned.
    unsafe { data.write_unaligned(file.as_raw_fd()) };
    // SAFETY: the message points to memory that outlives the call, and the kernel only reads it.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Receives up to as many bytes as the buffer has, and the file that came with them, if one did. No bytes
/// are the end.
///
/// # Errors
/// What the operating system answered.
#[cfg(target_os = "linux")]
pub fn receive_with_file(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    use std::os::fd::{AsRawFd, FromRawFd};

    let mut control = Control::default();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = control.message(&mut part);
    let received = loop {
        // SAFETY: the message points to buffers that outlive the call, with their true sizes.
        let received = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(received) {
            Ok(received) => break received,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    };
    // SAFETY: the kernel has said how much of the control buffer it filled.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Ok((received, None));
    }
    // SAFETY: it is not null, so a header was written there.
    let fields = unsafe { header.read() };
    if fields.cmsg_level != libc::SOL_SOCKET || fields.cmsg_type != libc::SCM_RIGHTS {
        return Ok((received, None));
    }
    // SAFETY: the data follows the header; the buffer has room for one file, so there is exactly one.
    let data = unsafe { libc::CMSG_DATA(header) }.cast::<libc::c_int>();
    // SAFETY: one number was written there, maybe unaligned.
    let file = unsafe { data.read_unaligned() };
    // SAFETY: the kernel has just opened it for this process, and nobody else knows of it.
    Ok((received, Some(unsafe { OwnedFd::from_raw_fd(file) })))
}

/// Room for one header with one file: 16 bytes and 4, rounded up, aligned as a header is.
#[cfg(target_os = "linux")]
#[derive(Default)]
struct Control([u64; 3]);

#[cfg(target_os = "linux")]
impl Control {
    fn message(&mut self, part: &mut libc::iovec) -> libc::msghdr {
        // SAFETY: `msghdr` is plain numbers and pointers, for which all zeros is a value: nothing.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = part;
        message.msg_iovlen = 1;
        message.msg_control = self.0.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&self.0);
        message
    }
}

/// Not on this operating system.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn send_with_file(_stream: &UnixStream, _bytes: &[u8], _file: BorrowedFd<'_>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Not on this operating system.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn receive_with_file(_stream: &UnixStream, _buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_arrives_with_its_bytes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut kept, passed) = UnixStream::pair().unwrap();
        send_with_file(&ours, b"with", passed.as_fd()).unwrap();
        drop(passed);
        (&ours).write_all(b"without").unwrap();
        let mut buffer = [0; 64];
        let (length, file) = receive_with_file(&theirs, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"with", "bytes that follow do not join those with a file");
        let mut passed = UnixStream::from(file.unwrap());
        passed.write_all(b"hello").unwrap();
        let mut hello = [0; 5];
        kept.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        let (length, file) = receive_with_file(&theirs, &mut buffer).unwrap();
        assert_eq!((&buffer[..length], file.is_none()), (&b"without"[..], true));
        drop(ours);
        assert_eq!(receive_with_file(&theirs, &mut buffer).unwrap().0, 0);
    }
}

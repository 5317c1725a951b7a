//! Messages over a stream: a header of eight bytes, then as many bytes as it says.
//!
//! The header names the version of the protocol, so that two builds that do not understand each other say
//! so. A message may come with an open file: shared memory, or the stream of a lane. What a stream brings
//! is checked for its length here and for its content by whoever knows it.

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::codec::{Broken, Writer};

/// Of the protocol; both sides are usually one program, but a remote one may be older.
const VERSION: u8 = 1;
/// What every message begins with.
const MAGIC: [u8; 2] = *b"Qd";
const HEADER_BYTES: usize = 8;
/// The longest message without its header. Tensors travel beside it.
const BODY_BYTES_MAX: usize = 4 << 20;
/// What one look at the stream brings in; most messages fit.
const CHUNK_BYTES: usize = 16 << 10;

/// Why no message came, or none went.
#[derive(Debug, thiserror::Error)]
pub(super) enum PipeError {
    /// The other side is gone.
    #[error("the other side has closed the connection")]
    Closed,
    /// The other side sends what it should not.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// What the operating system said; a time-out among others.
    #[error(transparent)]
    System(io::Error),
}

impl From<io::Error> for PipeError {
    fn from(error: io::Error) -> Self {
        let gone = [io::ErrorKind::UnexpectedEof, io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        if gone.contains(&error.kind()) { Self::Closed } else { Self::System(error) }
    }
}

/// A message as it came.
#[derive(Debug)]
pub(super) struct Received<'a> {
    pub(super) kind: u8,
    pub(super) body: &'a [u8],
    pub(super) file: Option<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Pipe {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    takes_files: bool,
}

impl Pipe {
    /// An end that takes messages without files only: what a child may send.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, incoming: Vec::new(), outgoing: Vec::new(), takes_files: false }
    }

    /// An end that also takes files.
    pub(super) fn taking_files(stream: UnixStream) -> Self {
        Self { takes_files: true, ..Self::new(stream) }
    }

    #[cfg(test)]
    fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message.
    pub(super) fn send(
        &mut self,
        kind: u8,
        write: impl FnOnce(&mut Writer),
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), PipeError> {
        let mut buffer = std::mem::take(&mut self.outgoing);
        buffer.clear();
        buffer.extend_from_slice(&[MAGIC[0], MAGIC[1], VERSION, kind, 0, 0, 0, 0]);
        let mut writer = Writer::over(buffer);
        write(&mut writer);
        let mut message = writer.done();
        let length = message.len() - HEADER_BYTES;
        if length > BODY_BYTES_MAX {
            return Err(Broken("it is too long to be sent").into());
        }
        let length = u32::try_from(length).expect("it is below the limit");
        message[4..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
        match file {
            // The header, with the file, goes whole; what is behind it may go in parts.
            Some(file) => {
                let (header, body) = message.split_at(HEADER_BYTES);
                quadrant_sys::send_with_file(&self.stream, header, file)?;
                self.stream.write_all(body)?;
            }
            None => self.stream.write_all(&message)?,
        }
        self.outgoing = message;
        Ok(())
    }

    /// Waits for the next message.
    pub(super) fn receive(&mut self) -> Result<Received<'_>, PipeError> {
        self.incoming.clear();
        let mut file = None;
        self.fill(HEADER_BYTES, &mut file)?;
        let header: [u8; HEADER_BYTES] =
            self.incoming[..HEADER_BYTES].try_into().expect("it was filled so far");
        let [first, second, version, kind, length @ ..] = header;
        if [first, second] != MAGIC {
            return Err(Broken("it does not begin as one").into());
        }
        if version != VERSION {
            return Err(Broken("it is of another version of this program").into());
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > BODY_BYTES_MAX {
            return Err(Broken("it is too long").into());
        }
        self.fill(HEADER_BYTES + length, &mut file)?;
        if self.incoming.len() > HEADER_BYTES + length {
            return Err(Broken("it came before its turn").into());
        }
        Ok(Received { kind, body: &self.incoming[HEADER_BYTES..], file })
    }

    /// Reads until there are at least so many bytes. Each side waits for an answer before it sends again, so
    /// there is never more than one message.
    fn fill(&mut self, wanted: usize, file: &mut Option<OwnedFd>) -> Result<(), PipeError> {
        while self.incoming.len() < wanted {
            let filled = self.incoming.len();
            let room = (wanted - filled).clamp(CHUNK_BYTES, 1 << 20);
            self.incoming.resize(filled + room, 0);
            let buffer = &mut self.incoming[filled..];
            let read = if self.takes_files {
                quadrant_sys::receive_with_file(&self.stream, buffer).map(|(read, came)| {
                    *file = file.take().or(came);
                    read
                })
            } else {
                read_some(&mut self.stream, buffer)
            };
            self.incoming.truncate(filled + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Err(PipeError::Closed);
            }
        }
        Ok(())
    }
}

fn read_some(stream: &mut UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn ends() -> (Pipe, Pipe) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Pipe::new(ours), Pipe::taking_files(theirs))
    }

    #[test]
    fn messages_and_files_arrive_whole() {
        let (mut ours, mut theirs) = ends();
        let (_kept, passed) = UnixStream::pair().unwrap();
        let sender = std::thread::spawn(move || {
            ours.send(3, |writer| writer.text("with"), Some(passed.as_fd())).unwrap();
            let answer = ours.receive().map(|answer| answer.body.len()).unwrap();
            // Larger than what the stream holds.
            ours.send(4, |writer| (0..400_000).for_each(|number| writer.long(number)), None).unwrap();
            answer
        });
        let received = theirs.receive().unwrap();
        assert_eq!((received.kind, received.file.is_some(), &received.body[4..]), (3, true, &b"with"[..]));
        theirs.send(9, |_| (), None).unwrap();
        let received = theirs.receive().unwrap();
        assert_eq!((received.kind, received.file.is_some(), received.body.len()), (4, false, 3_200_000));
        assert_eq!(sender.join().unwrap(), 0);
        assert!(matches!(theirs.receive(), Err(PipeError::Closed)));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, part) in [
            (b"Xd\x01\x00\0\0\0\0".to_vec(), "begin"),
            (b"Qd\x63\x00\0\0\0\0".to_vec(), "version"),
            (b"Qd\x01\x00\xff\xff\xff\xff".to_vec(), "too long"),
            (b"Qd\x01\x00\0\0\0\0more".to_vec(), "its turn"),
        ] {
            let (ours, mut theirs) = ends();
            ours.stream().write_all(&bytes).unwrap();
            let error = theirs.receive().unwrap_err().to_string();
            assert!(error.contains(part), "{bytes:?} gave `{error}`");
        }
        let (ours, mut theirs) = ends();
        ours.stream().write_all(b"Qd\x01\x00\x05\0\0\0abc").unwrap();
        drop(ours);
        assert!(matches!(theirs.receive(), Err(PipeError::Closed)), "it is cut off");
    }
}

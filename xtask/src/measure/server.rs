//! Servers under measurement: started on free ports, ended when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::program;
use crate::run::{within, works};

/// How long a server with processes of its own may take to end before all of them are killed.
const END_MAX: Duration = Duration::from_secs(15);
/// How long a readiness check may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A running server.
pub(crate) struct Server {
    child: Child,
    pub(crate) http: String,
    pub(crate) grpc: String,
    /// Of Quadrant.
    pub(crate) metrics: Option<String>,
    /// Whether it has processes of its own, in a process group with it.
    group: bool,
}

impl Server {
    /// `quadrant serve`, with every model loaded.
    pub(crate) fn quadrant(models: &Path, config: &Path) -> Result<Self> {
        let mut child = Command::new(program("quadrant"))
            .arg("serve")
            .arg(models)
            .arg("--config")
            .arg(config)
            .args(["--http-address", "127.0.0.1:0", "--grpc-address", "127.0.0.1:0"])
            .args(["--metrics-address", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start `quadrant serve`")?;
        let mut log = BufReader::new(child.stderr.take().context("the server has no log")?);
        let (mut http, mut grpc, mut metrics, mut text) = (None, None, None, String::new());
        loop {
            let mut line = String::new();
            if log.read_line(&mut line)? == 0 {
                bail!("the server ended: {text}");
            }
            let word = |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key));
            http = http.or(word("http=").map(str::to_owned));
            grpc = grpc.or(word("grpc=").map(str::to_owned));
            metrics = metrics.or(word("metrics=").map(str::to_owned));
            if line.contains("model unavailable") {
                bail!("a model cannot be served: {line}");
            }
            if line.contains("models loaded") {
                break;
            }
            text.push_str(&line);
        }
        let http = http.context("the server did not say its address")?;
        let grpc = grpc.unwrap_or_default();
        // Read to its end, so that writing to it neither fails nor waits.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(Self { child, http, grpc, metrics, group: false })
    }

    /// A bare echo server: `echo-http` or `echo-grpc`.
    pub(crate) fn echo(kind: &str) -> Result<Self> {
        let mut child = Command::new(program("quadrant-baseline"))
            .arg(kind)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the echo server")?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().context("the echo server says nothing")?)
            .read_line(&mut address)?;
        let address = address.trim().to_owned();
        Ok(Self { child, http: address.clone(), grpc: address, metrics: None, group: false })
    }

    /// A server that was started elsewhere, as the leader of a process group of its own, without gRPC.
    pub(crate) fn of_group(child: Child, http: String) -> Self {
        Self { child, http, grpc: String::new(), metrics: None, group: true }
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot ask after the server")
    }

    /// A page of Quadrant's port for metrics.
    pub(crate) fn page(&self, path: &str) -> Result<String> {
        let address = self.metrics.as_deref().context("the server did not say where its metrics are")?;
        let (status, body) = exchange(address, &format!("GET {path} HTTP/1.0\r\n\r\n"), b"")?;
        ensure!(status == 200, "`{path}` was answered with `{status}`: {body}");
        Ok(body)
    }

    /// A POST on a connection of its own: the status and the body of its answer.
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Result<(u16, String)> {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        exchange(&self.http, &head, body)
    }

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.group {
            // Killed at once, its processes would leave their shared memory behind.
            let id = self.child.id();
            kill("TERM", &id.to_string());
            within(END_MAX, || Ok(self.ended()?.is_some())).unwrap_or_default();
            kill("KILL", &format!("-{id}"));
        }
        // It is measured no more; how it ends does not matter here.
        self.child.kill().and_then(|()| self.child.wait().map(drop)).unwrap_or_default();
    }
}

/// A command whose process leads a group of its own, with which all that it starts can be ended. It then gets
/// no Ctrl-C, so it is told when we end.
pub(crate) fn apart(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(program).process_group(0).stdin(Stdio::null());
    command
}

/// An address that was free just now, for a server that does not tell which port it got.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr())?)
}

/// Whether a page is there; it is not while nothing listens yet.
pub(crate) fn is_there(address: &str, path: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status == *b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

/// Sends a signal to a process, or to a group if it starts with `-`. That there is none left is as well.
pub(super) fn kill(signal: &str, whom: &str) {
    works("sh", &["-c", "kill -s \"$0\" -- \"$1\"", signal, whom]);
}

/// Sends a request and reads its answer to the end: the status and the body.
fn exchange(address: &str, head: &str, body: &[u8]) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split_ascii_whitespace().nth(1).context("an answer without a status")?;
    Ok((status.parse().context("a status that is no number")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_listening_is_not_ready() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(!is_there(&address.to_string(), "/"));
    }
}

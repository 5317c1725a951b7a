//! Servers under measurement: started on free ports, ended when dropped.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::program;

/// A running server.
pub(crate) struct Server {
    child: Child,
    pub(crate) http: String,
    pub(crate) grpc: String,
    /// Its log, kept open so that writing to it does not fail.
    _log: Option<BufReader<ChildStderr>>,
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
        let (mut http, mut grpc, mut text) = (None, None, String::new());
        loop {
            let mut line = String::new();
            if log.read_line(&mut line)? == 0 {
                bail!("the server ended: {text}");
            }
            let word = |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key));
            http = http.or(word("http=").map(str::to_owned));
            grpc = grpc.or(word("grpc=").map(str::to_owned));
            if line.contains("model unavailable") {
                bail!("a model cannot be served: {line}");
            }
            if line.contains("models loaded") {
                break;
            }
            text.push_str(&line);
        }
        let http = http.context("the server did not say its address")?;
        Ok(Self { child, http, grpc: grpc.unwrap_or_default(), _log: Some(log) })
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
        Ok(Self { child, http: address.clone(), grpc: address, _log: None })
    }

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is measured no more; how it ends does not matter here.
        self.child.kill().and_then(|()| self.child.wait().map(drop)).unwrap_or_default();
    }
}

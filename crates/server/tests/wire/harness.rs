//! A node with emulated models and the three ports in front of it, and a client that knows only bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quadrant_node::{Batching, Config, ModelSettings, Node};
use quadrant_policy::Unmet;
use quadrant_server::{Drained, Limits, Shared, run_grpc, run_http, run_metrics};
use quadrant_types::{CoreSet, DataType};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Long enough for every answer on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server that ends with the test.
pub(crate) struct Server {
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) shared: Arc<Shared>,
    pub(crate) runtime: Runtime,
    pub(crate) node: Node,
    stop: watch::Sender<bool>,
    ports: Vec<JoinHandle<Drained>>,
    models: PathBuf,
}

/// The server of all tests that need no limits of their own.
pub(crate) fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start("common", Limits::default()))
}

impl Server {
    /// A server with models of its own; `name` is unique among the tests.
    pub(crate) fn start(name: &str, limits: Limits) -> Self {
        // The common server is never dropped: what stays of it goes with the build.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let models = folder.join(format!("wire-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&models).unwrap();
        for (model, text) in descriptions() {
            std::fs::write(models.join(format!("{model}.emulated.toml")), text).unwrap();
        }
        std::fs::write(models.join("broken.onnx"), "").unwrap();
        let batched = ModelSettings { batching: Some(Batching::UpTo(8)), ..ModelSettings::default() };
        // What cannot be in time is tried all the same, so that there is something to expire.
        let demoted = ModelSettings { unmet: Some(Unmet::Demote), ..ModelSettings::default() };
        let config = Config {
            models_dir: models.clone(),
            cores: CoreSet::from_cores([0]),
            onnxruntime: None,
            engine_host: None,
            discipline: quadrant_policy::Discipline::Quadrant,
            tenants: BTreeMap::new(),
            limits: quadrant_policy_limits(),
            probe_budget: Duration::from_secs(1),
            profiles_dir: None,
            poll: None,
            defaults: ModelSettings::default(),
            models: BTreeMap::from([("addsub".to_owned(), batched), ("slow".to_owned(), demoted)]),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let node = Node::start(config).unwrap();
        let shared = Arc::new(Shared::new(node.handle().clone(), limits).unwrap());
        let (stop, stopped) = watch::channel(false);
        let until = || {
            let mut stopped = stopped.clone();
            async move { drop(stopped.wait_for(|stopped| *stopped).await) }
        };
        let bind = || runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (http, grpc, metrics) = (bind(), bind(), bind());
        let addresses = [&http, &grpc, &metrics].map(|listener| listener.local_addr().unwrap());
        let ports = vec![
            runtime.spawn(run_http(http, Arc::clone(&shared), until())),
            runtime.spawn(run_grpc(grpc, Arc::clone(&shared), until())),
            runtime.spawn(run_metrics(metrics, Arc::clone(&shared), until())),
        ];
        let [http, grpc, metrics] = addresses;
        let server = Self { http, grpc, metrics, shared, runtime, node, stop, ports, models };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&self) {
        self.runtime.block_on(async {
            let ready = async {
                while !self.node.handle().is_ready() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, ready).await.expect("every model loads or fails in time");
        });
    }

    /// Waits until no request holds bytes any more; a lane lets go of its inputs shortly after the answer.
    pub(crate) fn wait_until_budget_is_free(&self) {
        self.runtime.block_on(async {
            let free = async {
                while self.shared.budget().held() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(PATIENCE, free).await.expect("every buffer is given back");
        });
    }

    /// Stops accepting and waits for the ports to end.
    pub(crate) fn stop(&mut self) -> Vec<Drained> {
        self.stop.send_replace(true);
        let ports = std::mem::take(&mut self.ports);
        self.runtime.block_on(async {
            let mut drained = Vec::new();
            for port in ports {
                drained.push(tokio::time::timeout(PATIENCE, port).await.unwrap().unwrap());
            }
            drained
        })
    }

    /// One request on a connection of its own.
    pub(crate) fn http(&self, head: &str, body: impl AsRef<[u8]>) -> Answer {
        Client::connect(self.http).send(head, body.as_ref())
    }

    /// An inference request of JSON.
    pub(crate) fn infer(&self, model: &str, json: &str) -> Answer {
        self.http(&format!("POST /v2/models/{model}/infer"), json)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // What cannot be removed lies in the temporary folder.
        drop(std::fs::remove_dir_all(&self.models));
    }
}

fn quadrant_policy_limits() -> quadrant_policy::Limits {
    quadrant_policy::Limits::default()
}

fn descriptions() -> Vec<(String, String)> {
    let tensor = |list: &str, members: &str| format!("[[{list}]]\n{members}\n");
    let input = |name: &str, datatype: &str, dims: &str| {
        tensor("inputs", &format!("name = \"{name}\"\ndatatype = \"{datatype}\"\ndims = {dims}"))
    };
    let output = |name: &str, from: &str| tensor("outputs", &format!("name = \"{name}\"\nfrom = \"{from}\""));
    let pair = |dims| {
        let inputs = input("INPUT0", "FP32", dims) + &input("INPUT1", "FP32", dims);
        inputs + &output("OUTPUT0", "INPUT0") + &output("OUTPUT1", "INPUT1")
    };
    let mut models = vec![
        ("addsub".to_owned(), pair("[\"batch\", 4]")),
        ("pair".to_owned(), pair("[\"n\", \"m\"]")),
        ("identity".to_owned(), input("x", "FP32", "[-1, -1]") + &output("y", "x")),
        (
            "slow".to_owned(),
            "latency = { kind = \"fixed\", step_us = 300000 }\n".to_owned()
                + &input("x", "FP32", "[-1]")
                + &output("y", "x"),
        ),
    ];
    for datatype in DataType::ALL {
        let name = datatype.name();
        models.push((format!("t_{name}"), input("x", name, "[-1]") + &output("y", "x")));
    }
    models
}

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One HTTP/1.1 connection.
pub(crate) struct Client {
    pub(crate) stream: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Sends a request: `head` is the method and path, and on further lines its headers.
    pub(crate) fn send(&mut self, head: &str, body: &[u8]) -> Answer {
        let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
        let mut request = format!("{line} HTTP/1.1\r\nHost: test\r\n");
        for header in headers.lines() {
            write!(request, "{header}\r\n").unwrap();
        }
        let names = |name: &str| headers.lines().any(|line| line.starts_with(name));
        if !names("Content-Length") && !names("Transfer-Encoding") {
            write!(request, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        request.push_str("\r\n");
        self.write(&[request.as_bytes(), body].concat());
        self.read().expect("the server answers")
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        // The server may have answered and closed before it read everything.
        drop(self.stream.get_mut().write_all(bytes));
    }

    /// The next answer, or `None` if the server closed the connection.
    pub(crate) fn read(&mut self) -> Option<Answer> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).ok()?;
        Some(Answer { status, headers, body })
    }
}

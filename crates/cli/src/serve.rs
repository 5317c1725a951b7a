//! `quadrant serve` and `quadrant config`.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use quadrant_node::{Config, ModelState, Node};
use quadrant_server::{Limits, Shared, run_grpc, run_http, run_metrics};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cache;
use crate::checked::{device_cores, in_flight_bytes, named_objectives, node_config, seconds};
use crate::settings::Settings;
use crate::tenants::{Tenancy, watch};

/// Where to serve; stronger than the configuration file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct AddressArgs {
    /// Where HTTP is served [default: 127.0.0.1:8000].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) http_address: Option<SocketAddr>,
    /// Where gRPC is served [default: 127.0.0.1:8001].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) grpc_address: Option<SocketAddr>,
    /// Where Prometheus' metrics are served [default: 127.0.0.1:8002].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) metrics_address: Option<SocketAddr>,
    /// ONNX Runtime's shared library: a path, `auto` or `off` [default: auto].
    #[arg(long, value_name = "PATH")]
    pub(crate) onnxruntime: Option<String>,
}

/// Serve the models of a folder.
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// The model repository: `NAME.onnx` files, Triton's `NAME/VERSION/model.onnx`, or Hugging Face's
    /// `NAME/model.safetensors`.
    models_dir: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

/// The configuration: a file, and flags on top.
#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// A configuration file; `quadrant config` prints one with every default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    addresses: AddressArgs,
}

impl ConfigArgs {
    fn settings(&self) -> Result<Settings> {
        let mut settings = match &self.config {
            Some(path) => Settings::read(path)?,
            None => Settings::default(),
        };
        self.addresses.apply(&mut settings);
        Ok(settings)
    }
}

impl AddressArgs {
    /// Overrides what the file says.
    pub(crate) fn apply(&self, settings: &mut Settings) {
        settings.http_address = self.http_address.unwrap_or(settings.http_address);
        settings.grpc_address = self.grpc_address.unwrap_or(settings.grpc_address);
        settings.metrics_address = self.metrics_address.unwrap_or(settings.metrics_address);
        if let Some(onnxruntime) = &self.onnxruntime {
            settings.device.onnxruntime.clone_from(onnxruntime);
        }
    }
}

/// Serves until told to end.
///
/// # Errors
/// What is wrong with the configuration or the ports, before anything is served.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let settings = args.config.settings()?;
    serve(&settings, &args.models_dir, |_| std::future::ready(Ok(After::GoOn)))
}

/// Prints the configuration, if it is valid.
///
/// # Errors
/// What is wrong with it.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn print_config(args: &ConfigArgs) -> Result<()> {
    let settings = args.settings()?;
    node_config(&settings, &PathBuf::new(), &[])?;
    wire_limits(&settings)?;
    Tenancy::read(&settings)?;
    print!("{}", settings.to_toml()?);
    Ok(())
}

/// Where a running server can be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// Where HTTP is served.
    pub(crate) http: SocketAddr,
    /// Where the metrics are.
    pub(crate) metrics: SocketAddr,
}

/// What the server does after what ran alongside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Serves until it is told to end.
    GoOn,
    /// Ends.
    End,
}

/// Serves, and runs `alongside` once every model was loaded or has failed. That says whether the server
/// goes on; if it fails the server ends.
///
/// # Errors
/// What kept the server from starting, or the error of `alongside`.
pub(crate) fn serve<F: Future<Output = Result<After>>>(
    settings: &Settings,
    models_dir: &std::path::Path,
    alongside: impl FnOnce(Bound) -> F,
) -> Result<()> {
    let config = node_config(settings, models_dir, &cache::onnxruntime_places())?;
    let config = Config { profiles_dir: cache::profiles_dir(), ..config };
    let limits = wire_limits(settings)?;
    let objectives = named_objectives(settings)?;
    let tenancy = Tenancy::read(settings)?;
    let runtime = runtime(settings)?;
    let result = runtime.block_on(async {
        let http = bind("http", settings.http_address).await?;
        let grpc = bind("grpc", settings.grpc_address).await?;
        let metrics = bind("metrics", settings.metrics_address).await?;
        let bound = Bound { http: http.local_addr()?, metrics: metrics.local_addr()? };
        let node = Node::start(config)?;
        let shared = Arc::new(Shared::new(node.handle().clone(), limits)?.with_objectives(objectives));
        announce((&http, &grpc, &metrics), tenancy.is_open())?;
        tenancy.apply(node.handle(), &shared);
        let watching = watch(settings.clone(), tenancy, node.handle().clone(), Arc::clone(&shared));
        let watching = tokio::spawn(watching);
        let (stop, stopped) = watch::channel(Stage::Serving);
        let until = |stage: Stage| {
            let mut stopped = stopped.clone();
            async move {
                // The sender lives as long as this function, which awaits the ports.
                drop(stopped.wait_for(|now| *now >= stage).await);
            }
        };
        let http = tokio::spawn(run_http(http, Arc::clone(&shared), until(Stage::Draining)));
        let grpc = tokio::spawn(run_grpc(grpc, Arc::clone(&shared), until(Stage::Draining)));
        let metrics = tokio::spawn(run_metrics(metrics, shared, until(Stage::Over)));
        let result = tokio::select! {
            () = told_to_end() => Ok(()),
            result = ready_then(&node, alongside(bound)) => result,
        };
        watching.abort();
        let deadline = seconds("server.shutdown_s", settings.server.shutdown_s)?;
        tracing::info!(
            within_s = deadline.as_secs_f64(),
            "draining: no new requests, accepted ones are finished"
        );
        let drained = node.drain();
        stop.send_replace(Stage::Draining);
        let ports = async {
            drained.await;
            (http.await, grpc.await)
        };
        tokio::select! {
            ended = tokio::time::timeout(deadline, ports) => {
                if ended.is_err() {
                    tracing::warn!("accepted requests did not end in time; ending without them");
                }
            }
            () = told_to_end() => tracing::warn!("told again; ending at once"),
        }
        stop.send_replace(Stage::Over);
        drop(tokio::time::timeout(Duration::from_secs(1), metrics).await);
        node.stop(Duration::from_secs(1));
        result
    });
    // A connection that does not end must not hold up the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    tracing::info!("ended");
    result
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    Draining,
    Over,
}

fn runtime(settings: &Settings) -> Result<tokio::runtime::Runtime> {
    let cores = device_cores(&settings.server.cores).context("in `server.cores`")?;
    let threads = if settings.server.threads == 0 { cores.len() } else { settings.server.threads };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).thread_name("server").enable_all();
    if !settings.server.cores.is_empty() {
        builder.on_thread_start(move || {
            if let Err(error) = quadrant_sys::confine_thread(cores) {
                tracing::warn!(%error, "a thread could not be confined to its cores");
            }
        });
    }
    builder.build().context("cannot start the threads of the server")
}

fn wire_limits(settings: &Settings) -> Result<Limits> {
    let limits = &settings.limits;
    let in_flight_bytes_max = in_flight_bytes(settings)?;
    // Where the memory leaves less for inputs than was configured, it leaves less for one of them, too.
    let is_cramped = in_flight_bytes_max < limits.in_flight_bytes;
    let body_bytes_max =
        if is_cramped { limits.body_bytes.min(in_flight_bytes_max) } else { limits.body_bytes };
    let limits = Limits {
        body_bytes_max,
        response_bytes_max: limits.response_bytes,
        in_flight_bytes_max,
        json_depth_max: limits.json_depth,
        header_read_timeout: seconds("limits.header_s", limits.header_s)?,
        body_read_timeout: seconds("limits.body_s", limits.body_s)?,
        request_timeout: None,
        connections_max: limits.connections,
        drain_timeout: seconds("server.shutdown_s", settings.server.shutdown_s)?,
    };
    Ok(limits.check()?)
}

async fn bind(name: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot serve {name} on `{address}`; choose another with `--{name}-address HOST:PORT`")
    })
}

fn announce((http, grpc, metrics): (&TcpListener, &TcpListener, &TcpListener), is_open: bool) -> Result<()> {
    let (http, grpc, metrics) = (http.local_addr()?, grpc.local_addr()?, metrics.local_addr()?);
    tracing::info!(%http, %grpc, %metrics, "serving");
    let is_local = http.ip().is_loopback() && grpc.ip().is_loopback();
    match (is_local, is_open) {
        (false, true) => {
            tracing::warn!("reachable from other machines, without authentication: see docs/tenants.md");
        }
        (false, false) => {
            tracing::info!("keys travel as they are: let a proxy in front speak TLS; see docs/tenants.md");
        }
        (true, _) => {}
    }
    Ok(())
}

/// Waits for the models, says how they fared, then runs `then`; ends when the server should.
async fn ready_then(node: &Node, then: impl Future<Output = Result<After>>) -> Result<()> {
    let loading = || node.handle().index().iter().any(|model| model.state == ModelState::Loading);
    while loading() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let index = node.handle().index();
    let ready = index.iter().filter(|model| model.state == ModelState::Ready).count();
    if index.is_empty() {
        tracing::warn!("the models folder is empty; put `NAME.onnx` into it and start again");
    }
    tracing::info!(ready, unavailable = index.len() - ready, "models loaded");
    match then.await? {
        After::GoOn => std::future::pending().await,
        After::End => Ok(()),
    }
}

/// Resolves at SIGTERM or SIGINT.
async fn told_to_end() {
    let signals =
        signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    match signals {
        Ok((mut term, mut interrupt)) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        Err(error) => {
            tracing::error!(%error, "cannot listen for signals");
            std::future::pending::<()>().await;
        }
    }
}

//! The models of the mix, as files to serve and requests to send.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::MixName;
use super::triton;
use super::workload::Calibration;
use crate::assets;
use crate::measure::server::Server;
use crate::run::target;

/// A model, and a request for it as `quadrant bench` takes it.
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) request: &'static str,
    /// Requests carry no batch dimension.
    pub(super) single: bool,
}

/// Requests in one batch at most, where a model can batch.
pub(super) const BATCH_MAX: usize = 32;
/// `fifo` with one thread a session.
pub(super) const FIFO_ONE: &str = "fifo-1";
/// The text detector, whose steps are ten times as long as the others'.
pub(super) const DETECTOR: &str = "ppocr-det";

const MEMBERS: [Member; 6] = [
    Member { name: DETECTOR, request: "ppocr-det:x=FP32[1,3,640,640]@fetch_name_0=1", single: false },
    Member { name: "ppocr-rec", request: "ppocr-rec:x=FP32[1,3,48,320]@fetch_name_0=1", single: false },
    Member {
        name: "minilm-l3",
        request: "minilm-l3:input_ids=INT64[1,64],attention_mask=INT64[1,64]=ones",
        single: false,
    },
    Member { name: "magika", request: "magika:bytes=INT32[1,2048]", single: false },
    Member { name: "ppocr-cls", request: "ppocr-cls:x=FP32[1,3,80,160]", single: false },
    Member {
        name: "silero-vad",
        request: "silero-vad:input=FP32[1,576],h=FP32[1,1,128],c=FP32[1,1,128]",
        single: true,
    },
];

/// The models in place, and how to serve them.
pub(crate) struct Mix {
    name: MixName,
    pub(crate) folder: PathBuf,
    pub(crate) library: PathBuf,
}

impl Mix {
    /// Fetches what is missing and puts the models into a folder.
    pub(crate) fn prepare(name: MixName) -> Result<Self> {
        let assets = assets::fetch()?;
        let library = assets.join("onnxruntime/libonnxruntime.so");
        let label = if name == MixName::A { "mix-a" } else { "mix-b" };
        let mix = Self { name, folder: target().join("measure").join(label), library };
        std::fs::create_dir_all(&mix.folder)?;
        for member in mix.members() {
            let from = assets.join(format!("models/{}.onnx", member.name));
            std::fs::copy(&from, mix.file(member))
                .with_context(|| format!("cannot copy `{}`", from.display()))?;
        }
        Ok(mix)
    }

    pub(super) fn name(&self) -> &'static str {
        if self.name == MixName::A { "a" } else { "b" }
    }

    /// The member of this name, in whichever mix.
    pub(crate) fn member(name: &str) -> Option<&'static Member> {
        MEMBERS.iter().find(|member| member.name == name)
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &'static Member> {
        let all = self.name == MixName::A;
        MEMBERS.iter().filter(move |member| all || member.name != DETECTOR)
    }

    /// Where a model lies.
    pub(super) fn file(&self, member: &Member) -> PathBuf {
        self.folder.join(format!("{}.onnx", member.name))
    }

    /// A server of all models without objectives.
    pub(super) fn serve_plain(&self) -> Result<Server> {
        self.start("plain", String::new(), |_| String::new())
    }

    /// A server under a policy, with everybody's objective; or Triton. The delay is that of `fifo` and of
    /// Triton.
    pub(super) fn serve(&self, policy: &str, calibration: &Calibration, delay_ms: f64) -> Result<Server> {
        if triton::is_triton(policy) {
            return triton::serve(self, policy, delay_ms);
        }
        let (discipline, width) = match policy {
            FIFO_ONE => ("fifo", "width = 1\n"),
            other => (other, ""),
        };
        let delay = if discipline == "fifo" { format!("delay_ms = {delay_ms:.3}\n") } else { String::new() };
        self.start(policy, format!("[scheduler]\npolicy = \"{discipline}\"\n"), |name| {
            let objective = calibration.of(name).map_or(0.0, |model| model.objective_ms);
            format!("latency_objective_ms = {objective:.3}\n{width}{delay}")
        })
    }

    /// A server whose best effort has this floor; a model without an objective is best effort.
    pub(super) fn serve_with_floor(&self, floor: f64, calibration: &Calibration) -> Result<Server> {
        self.start("floor", format!("[scheduler]\nbest_effort_floor = {floor}\n"), |name| {
            let objective = calibration.of(name).map(|model| model.objective_ms);
            objective.map_or_else(String::new, |objective| format!("latency_objective_ms = {objective:.3}\n"))
        })
    }

    /// A server with everybody's objective and these tenants.
    pub(super) fn serve_with_tenants(&self, tenants: &str, calibration: &Calibration) -> Result<Server> {
        self.start("tenants", tenants.to_owned(), |name| {
            let objective = calibration.of(name).map_or(0.0, |model| model.objective_ms);
            format!("latency_objective_ms = {objective:.3}\n")
        })
    }

    fn start(&self, label: &str, head: String, model: impl Fn(&str) -> String) -> Result<Server> {
        let mut text = head;
        writeln!(text, "[device]\nonnxruntime = \"{}\"", self.library.display())?;
        let batching = format!("batching = {BATCH_MAX}");
        text.push_str("[model_defaults]\nqueue = 16384\n");
        for member in self.members() {
            let batching = if member.single { "batching = \"off\"" } else { &batching };
            writeln!(text, "[models.{}]\n{batching}\n{}", member.name, model(member.name))?;
        }
        let config = target().join(format!("measure/mix-{}-{label}.toml", self.name()));
        std::fs::write(&config, text)?;
        Server::quadrant(&self.folder, &config)
    }
}

//! A real Triton as one more comparator: the server of the package `nvidia-pytriton` with its Python
//! backend, which calls ONNX Runtime (`triton/model.py`). It is not Triton's own ONNX Runtime backend, which
//! no Python package carries; so requests and answers pass one more process.
//!
//! Both comparators have one session of as many threads as there are cores for each model, all running
//! whenever they have work, and dynamic batching. `triton` is left to its defaults otherwise, and is asked
//! the same as Quadrant. `triton-tuned` has the settings that were seen to help it most:
//! - ONNX Runtime's idle threads do not spin; spinning, they take the cores from the other sessions.
//! - It is asked for whole outputs and not for the best class, which it finds by sorting all of the output.
//!   For the text recogniser that takes longer than the model does, and longer than sending everything.
//!
//! Neither knows objectives. Triton can refuse what has waited for too long, but with such a timeout its
//! batcher now and then sleeps for half a second though requests wait, and it did worse wherever it kept up.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::mix::{BATCH_MAX, Member, Mix};
use crate::measure::server::{Server, apart, free_address, is_there};
use crate::run::{target, within};
use crate::test::venv;

/// What they are called among the policies.
pub(super) const PLAIN: &str = "triton";
pub(super) const TUNED: &str = "triton-tuned";

const REQUIREMENTS: &str = "xtask/src/schedule/triton/requirements.txt";
const MODEL: &str = include_str!("triton/model.py");
/// What `python` says: its version, and the folders of its packages and of its own library.
const ASK_PYTHON: &str = "import sys, sysconfig\n\
    print('%d.%d' % sys.version_info[:2])\n\
    print(sysconfig.get_path('platlib'))\n\
    print(sysconfig.get_config_var('LIBDIR'))";
/// How long all models may take to load.
const START_MAX: Duration = Duration::from_secs(120);
/// How many last lines of the log an error shows.
const LOG_LINES: usize = 30;

/// Whether a policy stands for Triton.
pub(super) fn is_triton(policy: &str) -> bool {
    [PLAIN, TUNED].contains(&policy)
}

/// What to ask a server under this policy, given what the others are asked.
pub(super) fn request<'a>(policy: &str, request: &'a str) -> &'a str {
    match request.split_once('@') {
        Some((whole, _)) if policy == TUNED => whole,
        _ => request,
    }
}

/// A server of all models of the mix, whose batches wait for others up to `delay_ms`.
pub(super) fn serve(mix: &Mix, policy: &str, delay_ms: f64) -> Result<Server> {
    let install = Install::prepare()?;
    let repository = target().join(format!("measure/{policy}-{}", mix.name()));
    write_repository(&repository, mix, policy, delay_ms)?;
    let log = repository.with_extension("log");
    let http = free_address()?;
    let out = File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
    // It ends with the backend's processes.
    let child = apart(&install.folder.join("bin/tritonserver"))
        .arg(format!("--model-repository={}", repository.display()))
        .arg(format!("--backend-directory={}", install.folder.join("backends").display()))
        .args(["--http-address=127.0.0.1".to_owned(), format!("--http-port={}", http.port())])
        .args(["--allow-grpc=false", "--allow-metrics=false"])
        .env("PATH", install.path)
        .env("LD_LIBRARY_PATH", install.libraries)
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .context("cannot run `setpriv` of util-linux, which starts Triton")?;
    let mut server = Server::of_group(child, http.to_string());
    let ready = within(START_MAX, || {
        if let Some(status) = server.ended()? {
            bail!("Triton ended: {status}");
        }
        Ok(is_there(&server.http, "/v2/health/ready"))
    });
    let ready = ready.with_context(|| format!("the log of Triton ends with\n{}", tail(&log)))?;
    ensure!(ready, "Triton is not ready after `{START_MAX:?}`; its log ends with\n{}", tail(&log));
    Ok(server)
}

/// Where Triton lies, and the environment that it needs.
struct Install {
    folder: PathBuf,
    /// Its Python backend takes the packages of the first `python3` that it finds.
    path: String,
    libraries: String,
}

impl Install {
    fn prepare() -> Result<Self> {
        let python = venv::make("triton-venv", REQUIREMENTS)?;
        let output = Command::new(&python).args(["-c", ASK_PYTHON]).output()?;
        let said = String::from_utf8(output.stdout)?;
        let [version, packages, library] = said.lines().collect::<Vec<_>>()[..] else {
            bail!("`{}` does not say where its packages lie", python.display());
        };
        let packages = Path::new(packages);
        let folder = packages.join("pytriton/tritonserver");
        // The program that embeds Python comes in one build for each version of it, and is looked for here.
        let stub = "triton_python_backend_stub";
        let (from, to) = (
            folder.join("python_backend_stubs").join(version).join(stub),
            folder.join("backends/python").join(stub),
        );
        if !to.exists() {
            fs::copy(&from, &to).with_context(|| format!("Triton has no backend for Python `{version}`"))?;
        }
        let binaries = python.parent().context("the Python lies in no folder")?;
        // The system's `sh` and the like come after.
        let path = std::env::var_os("PATH").unwrap_or_default();
        Ok(Self {
            path: format!("{}:{}", binaries.display(), path.to_string_lossy()),
            libraries: format!("{}:{library}", packages.join("nvidia_pytriton.libs").display()),
            folder,
        })
    }
}

fn write_repository(folder: &Path, mix: &Mix, policy: &str, delay_ms: f64) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    for member in mix.members() {
        let (model, version) = (folder.join(member.name), folder.join(member.name).join("1"));
        fs::create_dir_all(&version)?;
        fs::write(model.join("config.pbtxt"), config(member, policy, delay_ms))?;
        fs::write(version.join("model.py"), MODEL)?;
        fs::copy(mix.file(member), version.join("model.onnx"))?;
    }
    Ok(())
}

/// All but inputs and outputs, which `model.py` adds.
fn config(member: &Member, policy: &str, delay_ms: f64) -> String {
    let spinning = u8::from(policy != TUNED);
    let batching = if member.single {
        "max_batch_size: 0\n".to_owned()
    } else {
        let delay_us = (1e3 * delay_ms).round();
        format!(
            "max_batch_size: {BATCH_MAX}\ndynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}\n"
        )
    };
    format!(
        "backend: \"python\"\ninstance_group [{{ kind: KIND_CPU, count: 1 }}]\n\
         parameters {{ key: \"allow_spinning\" value {{ string_value: \"{spinning}\" }} }}\n{batching}"
    )
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_no_batch_dimension_is_not_batched() {
        let member = |single| Member { name: "a", request: "a", single };
        assert!(
            config(&member(false), PLAIN, 2.0)
                .ends_with("max_batch_size: 32\ndynamic_batching { max_queue_delay_microseconds: 2000 }\n")
        );
        assert!(config(&member(true), PLAIN, 2.0).ends_with("max_batch_size: 0\n"));
    }

    #[test]
    fn only_the_tuned_one_does_not_spin() {
        let member = Member { name: "a", request: "a", single: false };
        assert!(config(&member, PLAIN, 0.0).contains("string_value: \"1\""));
        assert!(config(&member, TUNED, 0.0).contains("string_value: \"0\""));
    }

    #[test]
    fn only_the_tuned_one_is_asked_for_whole_outputs() {
        assert_eq!(request(PLAIN, "a:x=FP32[1]@y=1"), "a:x=FP32[1]@y=1");
        assert_eq!(request(TUNED, "a:x=FP32[1]@y=1"), "a:x=FP32[1]");
        assert_eq!(request(TUNED, "a:x=FP32[1]"), "a:x=FP32[1]");
    }
}

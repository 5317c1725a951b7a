//! llama.cpp as a comparator, built for this processor from the source package of `llama-cpp-python`, which
//! carries a pinned state of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{printed, run, say, target};
use crate::test::venv;

const REQUIREMENTS: &str = "xtask/src/measure/llama/requirements.txt";
/// The package and its version; the state of llama.cpp is the one that it carries.
const PACKAGE: &str = "llama_cpp_python";
const VERSION: &str = "0.3.36";
/// What is built of it.
const PROGRAMS: [&str; 4] = ["llama-bench", "llama-batched-bench", "llama-quantize", "llama-server"];
/// How: for this processor, without what is not measured.
const FLAGS: [&str; 6] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
];

/// Its programs, and the Python that has ONNX Runtime and what builds them.
#[derive(Debug)]
pub(super) struct Llama {
    folder: PathBuf,
    pub(super) python: PathBuf,
}

impl Llama {
    /// Fetches and builds what is missing; the first time takes some minutes.
    pub(super) fn prepare() -> Result<Self> {
        let python = venv::make("venv-llama", REQUIREMENTS)?;
        let folder = target().join(format!("llama-{VERSION}"));
        let llama = Self { folder, python };
        let build = llama.folder.join("build");
        let (stamp, processor) = (build.join("processor"), processor()?);
        if std::fs::read_to_string(&stamp).is_ok_and(|built_for| built_for == processor) {
            return Ok(llama);
        }
        say(&format!("building llama.cpp as {PACKAGE} {VERSION} has it, with {}", FLAGS.join(" ")));
        let source = llama.source()?;
        // The environment's own, wherever the system's are.
        let tools = llama.python.parent().context("Python lies in no folder")?;
        if build.is_dir() {
            std::fs::remove_dir_all(&build)?;
        }
        let mut configure = Command::new(tools.join("cmake"));
        configure.arg("-S").arg(source.join("vendor/llama.cpp")).arg("-B").arg(&build).args(FLAGS);
        configure
            .arg("-G")
            .arg("Ninja")
            .arg(format!("-DCMAKE_MAKE_PROGRAM={}", tools.join("ninja").display()));
        printed(&mut configure)?;
        let mut make = Command::new(tools.join("cmake"));
        make.arg("--build").arg(&build).arg("--target").args(PROGRAMS);
        printed(&mut make)?;
        std::fs::write(stamp, processor)?;
        Ok(llama)
    }

    /// One of its programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join("build/bin").join(name)
    }

    /// The unpacked source package.
    fn source(&self) -> Result<PathBuf> {
        let source = self.folder.join(format!("{PACKAGE}-{VERSION}"));
        if source.join("vendor/llama.cpp/CMakeLists.txt").is_file() {
            return Ok(source);
        }
        std::fs::create_dir_all(&self.folder)?;
        let mut download = Command::new(&self.python);
        download.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        download.args(["--no-build-isolation", "--no-binary", ":all:", "--dest"]).arg(&self.folder);
        run(download.arg(format!("{PACKAGE}=={VERSION}"))).context("cannot fetch the source of llama.cpp")?;
        let archive = self.folder.join(format!("{PACKAGE}-{VERSION}.tar.gz"));
        run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&self.folder))?;
        Ok(source)
    }

    /// What it says of the texts in `folder`, as `scores.py` there writes it.
    pub(super) fn scores(&self, model: &Path, folder: &Path) -> Result<PathBuf> {
        let mut command = Command::new(&self.python);
        command.arg(folder.join("scores.py")).arg(model).arg(folder.join("texts.txt"));
        command.env("PYTHONPATH", self.source()?).env("LLAMA_CPP_LIB_PATH", self.folder.join("build/bin"));
        let scores = self.folder.join("scores.json");
        std::fs::write(&scores, printed(&mut command)?)?;
        Ok(scores)
    }

    /// The model's weights in another encoding, made from the file's own.
    pub(super) fn requantised(&self, model: &Path, encoding: &str) -> Result<PathBuf> {
        let to = self.folder.join(format!("{}-{encoding}.gguf", stem(model)));
        if !to.is_file() {
            let part = to.with_extension("part");
            let mut quantise = Command::new(self.program("llama-quantize"));
            printed(quantise.arg("--allow-requantize").args(["--pure"]).arg(model).arg(&part).arg(encoding))?;
            std::fs::rename(part, &to)?;
        }
        Ok(to)
    }
}

/// What this processor can do: what was built for one would be too slow, or stop, on another.
fn processor() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let flags = text.lines().find(|line| line.starts_with("flags"));
    Ok(flags.context("/proc/cpuinfo has no line of flags")?.to_owned())
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

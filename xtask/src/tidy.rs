//! What no lint knows: the length of files, the direction of dependencies between crates, where `unsafe`
//! may stand. Files that were too long when the rule came are listed in `tidy.allowed`; the list may only
//! shrink.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::run::{cargo, root, say};

/// Lines of a file without its tests that should not be passed.
const LINES_SOFT: usize = 400;
/// Lines that are never passed.
const LINES_HARD: usize = 800;
/// Characters of a line.
const COLUMNS: usize = 110;
/// Folders below `src`.
const DEPTH: usize = 2;

/// Which of our crates each may use, besides itself. What is not here may use nothing of ours.
const ARROWS: [(&str, &[&str]); 14] = [
    ("types", &[]),
    ("proto", &[]),
    ("fetch", &[]),
    ("policy", &["types"]),
    ("sys", &["types"]),
    ("engine", &["types", "sys"]),
    ("node", &["types", "policy", "engine", "sys", "proto"]),
    ("server", &["types", "node", "proto"]),
    ("sim", &["types", "policy"]),
    ("bench", &["types", "proto"]),
    ("baseline", &["types", "engine", "sys", "proto"]),
    ("cli", &["types", "policy", "sys", "engine", "node", "server", "bench", "fetch"]),
    ("xtask", &["fetch", "bench"]),
    ("kernels", &["types"]),
];

/// Looks at every source file and every manifest.
///
/// # Errors
/// How many things are wrong; each was printed.
pub(crate) fn run() -> Result<()> {
    let mut problems = arrows()?;
    let allowed = allowed()?;
    let mut long = BTreeMap::new();
    for path in sources()? {
        let text = fs::read_to_string(root().join(&path)).with_context(|| format!("cannot read `{path}`"))?;
        problems.extend(file_problems(&path, &text));
        let lines = lines_without_tests(&text);
        if lines > LINES_SOFT {
            long.insert(path, lines);
        }
    }
    for (path, lines) in &long {
        match allowed.get(path) {
            Some(most) if lines <= most => {}
            _ if *lines > LINES_HARD => {
                problems.push(format!("{path}: `{lines}` lines, more than `{LINES_HARD}`"))
            }
            _ => problems.push(format!("{path}: `{lines}` lines, more than `{LINES_SOFT}`; split it")),
        }
    }
    for (path, most) in &allowed {
        let lines = long.get(path).copied().unwrap_or(0);
        if lines < *most {
            problems.push(format!("{path}: now `{lines}` lines; lower or remove its line in `tidy.allowed`"));
        }
    }
    for problem in &problems {
        say(problem);
    }
    ensure!(problems.is_empty(), "`{}` things to tidy", problems.len());
    Ok(())
}

/// The files that may be longer, with how long.
fn allowed() -> Result<BTreeMap<String, usize>> {
    let text =
        fs::read_to_string(root().join("xtask/tidy.allowed")).context("cannot read `xtask/tidy.allowed`")?;
    let entry = |line: &str| {
        let (path, lines) = line.rsplit_once(' ').with_context(|| format!("not `PATH LINES`: `{line}`"))?;
        Ok((path.to_owned(), lines.parse()?))
    };
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(entry).collect()
}

/// Our Rust files, relative to the root.
fn sources() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join("crates"), root().join("xtask")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root()).expect("it lies in the repository");
                found.push(relative.to_str().context("a file name is not text")?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Lines before the first test module.
fn lines_without_tests(text: &str) -> usize {
    text.lines().take_while(|line| *line != "#[cfg(test)]").count()
}

fn file_problems(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut problem = |line: usize, what: &str| problems.push(format!("{path}:{line}: {what}"));
    if !text.starts_with("//!") {
        problem(1, "a file opens with what it is");
    }
    if path.ends_with("/mod.rs") {
        problem(1, "`foo.rs` beside `foo/`, never `mod.rs`");
    }
    let below_src = path.split_once("/src/").map_or(0, |(_, below)| Path::new(below).components().count());
    if below_src > DEPTH {
        problem(1, "deeper than two folders below `src`");
    }
    let may_be_unsafe = path.starts_with("crates/sys/") || path.starts_with("crates/kernels/");
    let own_rules = path == "xtask/src/tidy.rs";
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        // The formatter breaks code; what it leaves longer is a text that reads better whole.
        if line.chars().count() > COLUMNS && !line.contains('"') {
            problem(number, "a line of more than 110 characters");
        }
        if line.ends_with(' ') || line.contains('\t') {
            problem(number, "a trailing space or a tab");
        }
        if own_rules {
            continue;
        }
        let code = line.split("//").next().unwrap_or_default();
        if !may_be_unsafe && (code.contains("unsafe {") || code.contains("unsafe fn")) {
            problem(number, "`unsafe` outside `sys` and `kernels`");
        }
        for word in ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX", "/root/", "/work/"] {
            if line.contains(word) {
                problem(number, &format!("`{word}` is left over"));
            }
        }
    }
    problems
}

/// Dependencies between our crates that the table does not have.
fn arrows() -> Result<Vec<String>> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]).output()?;
    ensure!(output.status.success(), "`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().context("no packages")? {
        let name = short(package["name"].as_str().context("a package has no name")?);
        let Some((_, may_use)) = ARROWS.iter().find(|(krate, _)| *krate == name) else {
            problems.push(format!("crate `{name}` has no line in the table of xtask/src/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            let used = dependency["name"].as_str().context("a dependency has no name")?;
            let ours = used.starts_with("quadrant-");
            // Tests may look further down, never up.
            let for_tests = dependency["kind"] == "dev";
            if ours && !for_tests && !may_use.contains(&short(used)) {
                problems.push(format!("crate `{name}` must not use `{}`", short(used)));
            }
        }
    }
    Ok(problems)
}

fn short(name: &str) -> &str {
    name.strip_prefix("quadrant-").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        run().unwrap();
    }

    #[test]
    fn what_is_untidy_is_found() {
        for (path, text, part) in [
            ("crates/a/src/a.rs", "fn a() {}", "opens with what it is"),
            ("crates/a/src/b/mod.rs", "//! A.", "never `mod.rs`"),
            ("crates/a/src/b/c/d.rs", "//! A.", "deeper"),
            ("crates/a/src/a.rs", "//! A.\nfn a() { unsafe { b() } }", ":2: `unsafe`"),
            ("crates/a/src/a.rs", "//! A.\nfn a() { todo!() }", "`todo!(`"),
            ("crates/a/src/a.rs", "//! A. ", "trailing"),
        ] {
            let problems = file_problems(path, text);
            assert!(problems.iter().any(|problem| problem.contains(part)), "{problems:?}");
        }
        assert_eq!(file_problems("crates/sys/src/a.rs", "//! A.\nfn a() { unsafe { b() } }"), [""; 0]);
        assert_eq!(lines_without_tests("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
    }
}

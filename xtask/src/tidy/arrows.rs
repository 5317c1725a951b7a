//! The direction of dependencies between our crates, and what every manifest must say.
//!
//! A crate exists to enforce a direction; this table is that direction. An arrow that is missing here is a
//! decision to be made, not a line to be added.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::run::{cargo, root};

/// Which of our crates each may use. One that has no line here may not be in the workspace.
const ARROWS: [(&str, &[&str]); 16] = [
    ("types", &[]),
    ("traffic", &[]),
    ("proto", &[]),
    ("fetch", &[]),
    ("kernels", &[]),
    ("policy", &["types"]),
    ("sys", &["types"]),
    ("engine", &["types", "sys", "kernels", "llm"]),
    ("llm", &["types", "sys", "kernels"]),
    ("node", &["types", "policy", "engine", "sys", "proto"]),
    ("server", &["types", "node", "proto"]),
    ("sim", &["types", "policy"]),
    ("bench", &["types", "proto", "traffic"]),
    ("baseline", &["types", "policy", "engine", "kernels", "llm", "sys", "sim", "proto"]),
    (
        "cli",
        &["types", "policy", "sys", "engine", "node", "proto", "server", "sim", "bench", "fetch", "traffic"],
    ),
    ("xtask", &["fetch", "bench", "traffic"]),
];
/// The crates with lints of their own: `unsafe` cannot be forbidden there.
const OWN_LINTS: [&str; 2] = ["sys", "kernels"];

/// A dependency of one of our crates on another.
#[derive(Debug)]
struct Arrow {
    from: String,
    to: String,
    for_tests: bool,
}

/// All that is wrong with the manifests.
pub(super) fn problems() -> Result<Vec<String>> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]).output()?;
    ensure!(output.status.success(), "`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().context("no packages")? {
        let from = short(package["name"].as_str().context("a package has no name")?);
        if !ARROWS.iter().any(|(name, _)| *name == from) {
            problems.push(format!("crate `{from}` has no line in the table of xtask/src/tidy/arrows.rs"));
        }
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            let to = dependency["name"].as_str().context("a dependency has no name")?;
            if to.starts_with("quadrant-") {
                let for_tests = dependency["kind"] == "dev";
                let arrow = Arrow { from: from.to_owned(), to: short(to).to_owned(), for_tests };
                problems.extend(problem(&arrow));
            }
        }
        let manifest = package["manifest_path"].as_str().context("a package has no manifest")?;
        let text = fs::read_to_string(manifest).with_context(|| format!("cannot read `{manifest}`"))?;
        let path = manifest.strip_prefix(root().to_str().unwrap_or_default()).unwrap_or(manifest);
        problems.extend(manifest_problems(from, &text).map(|what| format!("{path}: {what}")));
    }
    Ok(problems)
}

fn short(name: &str) -> &str {
    name.strip_prefix("quadrant-").unwrap_or(name)
}

fn may_use(from: &str) -> &'static [&'static str] {
    ARROWS.iter().find(|(name, _)| *name == from).map_or(&[], |(_, to)| to)
}

/// Whether `to` can be reached from `from` along the table.
fn reaches(from: &str, to: &str) -> bool {
    may_use(from).iter().any(|next| *next == to || reaches(next, to))
}

fn problem(Arrow { from, to, for_tests }: &Arrow) -> Option<String> {
    if *for_tests {
        // Tests may look at any crate that does not stand above their own.
        return reaches(to, from)
            .then(|| format!("the tests of `{from}` must not use `{to}`, which uses it"));
    }
    let allowed = may_use(from).contains(&to.as_str());
    (!allowed).then(|| format!("crate `{from}` must not use `{to}`"))
}

/// What is wrong with the text of a manifest.
fn manifest_problems(name: &str, text: &str) -> impl Iterator<Item = &'static str> {
    let inherits = text.contains("[lints]\nworkspace = true");
    let lints =
        (!inherits && !OWN_LINTS.contains(&name)).then_some("the workspace's lints are not inherited");
    let mut in_dependencies = false;
    let listed_here = text.lines().any(|line| {
        if line.starts_with('[') {
            in_dependencies = line.ends_with("dependencies]");
        }
        in_dependencies && line.contains('=') && !line.contains("workspace = true")
    });
    let versions = listed_here.then_some("a dependency is not listed in the workspace's manifest");
    lints.into_iter().chain(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_point_down_only() {
        for (from, to, for_tests, expect) in [
            ("policy", "types", false, None),
            ("policy", "engine", false, Some("crate `policy` must not use `engine`")),
            ("types", "policy", false, Some("crate `types` must not use `policy`")),
            ("server", "policy", true, None),
            ("engine", "server", true, Some("the tests of `engine` must not use `server`, which uses it")),
        ] {
            let arrow = Arrow { from: from.to_owned(), to: to.to_owned(), for_tests };
            assert_eq!(problem(&arrow).as_deref(), expect);
        }
    }

    #[test]
    fn the_table_has_no_circle() {
        for (name, _) in ARROWS {
            assert!(!reaches(name, name), "{name}");
        }
    }

    #[test]
    fn manifests_inherit() {
        let lints = "[lints]\nworkspace = true\n";
        for (name, text, expect) in [
            ("policy", format!("[dependencies]\na.workspace = true\n\n{lints}"), vec![]),
            ("policy", "[lints.rust]\n".to_owned(), vec!["the workspace's lints are not inherited"]),
            ("sys", "[lints.rust]\na = \"deny\"\n".to_owned(), vec![]),
            (
                "policy",
                format!("[dev-dependencies]\na = \"1\"\n{lints}"),
                vec!["a dependency is not listed in the workspace's manifest"],
            ),
        ] {
            assert_eq!(manifest_problems(name, &text).collect::<Vec<_>>(), expect, "{text}");
        }
    }
}

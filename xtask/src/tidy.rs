//! What no lint knows: the length of files, the direction of dependencies between crates, where `unsafe`
//! may stand, what was left over.
//!
//! Files that were too long when the rule came are listed in `tidy.allowed`; the list may only shrink.

mod arrows;
mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::run::{root, say};

/// Lines of a file without its tests that should not be passed.
const LINES_SOFT: usize = 400;
/// Lines that are never passed, listed or not.
const LINES_HARD: usize = 800;
/// What our texts end with.
const EXTENSIONS: [&str; 6] = ["rs", "py", "toml", "md", "sh", "proto"];
/// The hidden folders that are ours.
const HIDDEN: [&str; 3] = [".cargo", ".ci", ".config"];

/// Looks at every text and every manifest.
///
/// # Errors
/// How many things are wrong; each was printed.
pub(crate) fn run() -> Result<()> {
    let mut problems = arrows::problems()?;
    let mut long = BTreeMap::new();
    for path in sources()? {
        let text = fs::read_to_string(root().join(&path)).with_context(|| format!("cannot read `{path}`"))?;
        problems.extend(rules::problems(&path, &text));
        let lines = rules::lines_without_tests(&text);
        if path.ends_with(".rs") && lines > LINES_SOFT {
            long.insert(path, lines);
        }
    }
    problems.extend(ratchet(&long, &allowed()?));
    for problem in &problems {
        say(problem);
    }
    ensure!(problems.is_empty(), "`{}` things to tidy", problems.len());
    Ok(())
}

/// What is wrong with the files that are `long`, given how long each is `allowed` to be.
fn ratchet(long: &BTreeMap<String, usize>, allowed: &BTreeMap<String, usize>) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, lines) in long {
        let most = allowed.get(path).copied().unwrap_or(LINES_SOFT).min(LINES_HARD);
        if *lines > most {
            problems.push(format!("{path}: `{lines}` lines without tests, more than `{most}`; split it"));
        }
    }
    for (path, most) in allowed {
        let lines = long.get(path).copied().unwrap_or(0);
        if lines < *most {
            problems.push(format!("{path}: now `{lines}` lines; lower or remove its line in `tidy.allowed`"));
        }
    }
    problems
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

/// Our texts, relative to the root.
fn sources() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_str().context("a file name is not text")?;
            if entry.file_type()?.is_dir() {
                let ours = if name.starts_with('.') { HIDDEN.contains(&name) } else { name != "target" };
                folders.extend(ours.then_some(path));
                continue;
            }
            let relative = path.strip_prefix(root()).expect("it lies in the repository");
            let relative = relative.to_str().context("a file name is not text")?.to_owned();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if relative == ".ci/run" || extension.is_some_and(|it| EXTENSIONS.contains(&it)) {
                found.push(relative);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        run().unwrap();
    }

    #[test]
    fn the_list_of_long_files_may_only_shrink() {
        let files = |of: &[(&str, usize)]| of.iter().map(|(path, n)| ((*path).to_owned(), *n)).collect();
        for (long, allowed, part) in [
            (vec![("a", 401)], vec![], Some("a: `401` lines without tests, more than `400`")),
            (vec![("a", 450)], vec![("a", 450)], None),
            (vec![("a", 451)], vec![("a", 450)], Some("more than `450`")),
            (vec![("a", 449)], vec![("a", 450)], Some("now `449` lines; lower or remove")),
            (vec![], vec![("a", 450)], Some("now `0` lines; lower or remove")),
            (vec![("a", 900)], vec![("a", 900)], Some("more than `800`")),
        ] {
            let problems = ratchet(&files(&long), &files(&allowed));
            match part {
                None => assert_eq!(problems, [""; 0]),
                Some(part) => assert!(problems.iter().any(|it| it.contains(part)), "{problems:?}"),
            }
        }
    }
}

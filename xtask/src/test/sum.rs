//! How many tests passed, failed and were skipped, read from what the runners print.
//!
//! Each of cargo's test runner, nextest and pytest closes with a line for people that has been the same for
//! years; their machine-readable formats are unstable, or an option that a fresh machine lacks.

use std::fmt;
use std::ops::AddAssign;

/// What came of some tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Sum {
    /// The sum of all closing lines in a runner's output.
    pub(crate) fn of_output(text: &str) -> Self {
        let mut sum = Self::default();
        for line in text.lines() {
            sum += of_line(line);
        }
        sum
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

fn of_line(line: &str) -> Sum {
    let pytest = line.starts_with("==") && line.ends_with("==") && line.contains(" in ");
    // Not indented: nextest shows so what a failed test's own runner printed.
    let cargo = line.starts_with("test result:");
    let nextest = line.trim_start().starts_with("Summary [");
    if !pytest && !cargo && !nextest {
        return Sum::default();
    }
    let ends_word = |c: char| c.is_whitespace() || ",;:=()".contains(c);
    let words: Vec<&str> = line.split(ends_word).filter(|word| !word.is_empty()).collect();
    let count = |names: &[&str]| -> u64 {
        let pairs = words.windows(2).filter(|pair| names.contains(&pair[1]));
        pairs.filter_map(|pair| pair[0].parse::<u64>().ok()).sum()
    };
    Sum {
        passed: count(&["passed", "xfailed"]),
        // nextest says `timed out` and `exec failed`.
        failed: count(&["failed", "error", "errors", "timed", "exec", "xpassed"]),
        skipped: count(&["skipped", "ignored"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        for (line, expect) in [
            ("test result: ok. 10 passed; 0 failed; 2 ignored; 0 measured; 3 filtered out", [10, 0, 2]),
            ("test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out", [1, 1, 0]),
            ("     Summary [   1.2s] 12 tests run: 10 passed (1 slow), 2 failed, 4 skipped", [10, 2, 4]),
            ("     Summary [   1.2s] 3 tests run: 2 passed, 1 timed out, 0 skipped", [2, 1, 0]),
            ("     Summary [   1.2s] 3 tests run: 1 passed (1 leaky), 2 exec failed, 0 skipped", [1, 2, 0]),
            ("=== 3 failed, 20 passed, 1 skipped, 2 errors in 1.20s ===", [20, 5, 1]),
            ("============ 7 passed in 61.20s (0:01:01) ============", [7, 0, 0]),
            ("    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured", [0, 0, 0]),
            ("=== short test summary info ===", [0, 0, 0]),
            ("20 passed, 1 failed somewhere in a log", [0, 0, 0]),
        ] {
            let Sum { passed, failed, skipped } = Sum::of_output(line);
            assert_eq!([passed, failed, skipped], expect, "{line}");
        }
    }
}

//! `cargo xtask test`: every check in one command, and a closing table of what each said.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::bail;
use clap::Args;

use crate::autobahn;
use crate::install;
use crate::peers;
use crate::process::{command, is_installed, run_logged, target_folder};
use crate::purity;
use crate::steps::Steps;

/// Crates that are no members of the workspace: the folder they are built in, below the target folder, and where
/// they are.
const CRATES_OUTSIDE: [(&str, &str); 2] = [
    ("peers", "peers/tungstenite/Cargo.toml"),
    ("fuzz", "fuzz/Cargo.toml"),
];

/// What to leave out.
#[derive(Args)]
pub struct Options {
    /// Only what needs no release build and no other server: formatting, lints, purity, tests.
    #[arg(long)]
    quick: bool,
}

/// How many tests a runner ran, in the words of its closing lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Runs every step, prints the closing table, and tells whether all succeeded.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let mut steps = Steps::default();
    let mut count = Count::default();
    let mut closing_lines = Vec::new();
    steps.run("prerequisites", || {
        install::npm_packages().map(|()| "npm packages of peers/".to_owned())
    });
    steps.run("formatting", formatting);
    steps.run("clippy", || {
        cargo(
            &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
            "clippy",
            &[],
        )
    });
    steps.run("purity", || match purity::run() {
        Ok(true) => Ok("wire and engine".to_owned()),
        Ok(false) => bail!("wire or engine is impure"),
        Err(error) => Err(error),
    });
    if !options.quick {
        steps.run("clippy outside", clippy_outside);
        steps.run("documentation", || {
            cargo(
                &["doc", "--workspace", "--no-deps"],
                "doc",
                &[("RUSTDOCFLAGS", OsStr::new("-D warnings"))],
            )
        });
        steps.run("doc tests", || {
            tests(
                &["test", "--doc", "--workspace"],
                "doc-tests",
                &mut count,
                &mut closing_lines,
            )
        });
    }
    steps.run("tests", || {
        if is_installed("cargo-nextest") {
            tests(
                &["nextest", "run", "--workspace", "--no-fail-fast"],
                "tests",
                &mut count,
                &mut closing_lines,
            )
        } else {
            println!(
                "cargo-nextest is not installed: using `cargo test`, which runs the same tests more slowly"
            );
            let words = [
                "test",
                "--workspace",
                "--no-fail-fast",
                "--lib",
                "--bins",
                "--tests",
                "--examples",
            ];
            let remark = tests(&words, "tests", &mut count, &mut closing_lines)?;
            Ok(format!("{remark} (cargo test: nextest is not installed)"))
        }
    });
    if !options.quick {
        steps.run("rival servers", peers::check_all);
        steps.run("autobahn, a part", || {
            match autobahn::run_drivers(&["epoll", "uring"], autobahn::PART_FOR_CI)? {
                true => Ok("both drivers; `cargo xtask autobahn` runs all".to_owned()),
                false => bail!("cases that are neither OK nor INFORMATIONAL, or were not run: see above"),
            }
        });
    }
    println!("\nwhat the test runners said last:");
    for line in closing_lines {
        println!("{line}");
    }
    println!("\n{}", steps.table());
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(steps.succeeded())
}

/// Checks the formatting of the workspace and of the crates outside it.
fn formatting() -> anyhow::Result<String> {
    cargo(&["fmt", "--all", "--check"], "fmt", &[])?;
    for (_, manifest) in CRATES_OUTSIDE {
        cargo(
            &["fmt", "--check", "--manifest-path", manifest],
            "fmt-outside",
            &[],
        )?;
    }
    Ok(String::new())
}

/// Lints the crates outside the workspace, which no other step builds.
fn clippy_outside() -> anyhow::Result<String> {
    // The fuzzing library is C++.
    install::programs(&[("c++", "g++")])?;
    for (name, manifest) in CRATES_OUTSIDE {
        let target = target_folder()?.join(name);
        let variables = [("CARGO_TARGET_DIR", target.as_os_str())];
        cargo(
            &[
                "clippy",
                "--all-targets",
                "--manifest-path",
                manifest,
                "--",
                "-D",
                "warnings",
            ],
            &format!("clippy-{name}"),
            &variables,
        )?;
    }
    Ok(CRATES_OUTSIDE.map(|(name, _)| name).join(", "))
}

/// Runs cargo with these words and variables; its output is shown and kept in a file of this name.
pub fn cargo(words: &[&str], log: &str, variables: &[(&str, &OsStr)]) -> anyhow::Result<String> {
    let log = target_folder()?.join(format!("log/{log}.log"));
    let mut cargo = Command::new("cargo");
    let outcome = run_logged(cargo.args(words).envs(variables.iter().copied()), &log)?;
    if !outcome.succeeded {
        bail!("`cargo {}` failed, see {}", words.join(" "), log.display());
    }
    Ok(String::new())
}

/// Runs a test runner; adds what it counted to `total` and keeps its closing lines.
fn tests(
    words: &[&str],
    log: &str,
    total: &mut Count,
    closing_lines: &mut Vec<String>,
) -> anyhow::Result<String> {
    let log = target_folder()?.join(format!("log/{log}.log"));
    let mut cargo = command(["cargo"]);
    let outcome = run_logged(cargo.args(words), &log)?;
    let mut count = Count::default();
    for line in &outcome.lines {
        if let Some(found) = count_in(line) {
            count.passed += found.passed;
            count.failed += found.failed;
            // A crate without tests says nothing worth repeating.
            if found != Count::default() {
                closing_lines.push(line.trim().to_owned());
            }
        }
    }
    total.passed += count.passed;
    total.failed += count.failed;
    if !outcome.succeeded {
        bail!(
            "{} passed, {} failed, see {}",
            count.passed,
            count.failed,
            log.display()
        );
    }
    Ok(format!("{} passed", count.passed))
}

/// What a closing line of `cargo test` or nextest counts; `None` for any other line.
fn count_in(line: &str) -> Option<Count> {
    // nextest shows a failed test's own closing line too, indented.
    let cargo_test = line.starts_with("test result: ");
    let line = line.trim();
    if !(cargo_test || (line.starts_with("Summary ") && line.contains(" run: "))) {
        return None;
    }
    let number_before = |word: &str| {
        let (before, _) = line.split_once(&format!(" {word}"))?;
        before.rsplit(' ').next()?.parse::<u64>().ok()
    };
    let sum = |words: &[&str]| words.iter().filter_map(|word| number_before(word)).sum();
    Some(Count {
        passed: sum(&["passed"]),
        failed: sum(&["failed", "timed out"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expect: Option<(u64, u64)>) {
        assert_eq!(
            count_in(line),
            expect.map(|(passed, failed)| Count { passed, failed }),
            "{line:?}"
        );
    }

    #[test]
    fn closing_lines_are_counted() {
        check(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            Some((12, 0)),
        );
        check(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured",
            Some((3, 2)),
        );
        check(
            "     Summary [   4.210s] 345 tests run: 345 passed (2 slow), 1 skipped",
            Some((345, 0)),
        );
        check(
            "     Summary [   4.210s] 5 tests run: 3 passed, 1 failed, 1 timed out, 0 skipped",
            Some((3, 2)),
        );
    }

    #[test]
    fn other_lines_are_not() {
        check("running 12 tests", None);
        check("test codec::tests::three_passed ... ok", None);
        check("Summary of what passed", None);
    }
}

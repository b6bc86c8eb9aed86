//! Thin commands around cargo's own tools: release builds, fuzzing, and the check of dependencies.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::install::cargo_tool;
use crate::process::{command, output_of, run_logged, target_folder};
use crate::steps::Steps;

/// Pinned versions of the tools that are built where absent.
const CARGO_FUZZ: &str = "0.13.2";
const CARGO_DENY: &str = "0.20.2";

/// How to fuzz.
#[derive(Args)]
pub struct FuzzOptions {
    /// How long each target runs, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Run this target alone.
    #[arg(long)]
    target: Option<String>,
}

/// Builds a program of the workspace for release and tells where it is.
pub fn release_program(name: &str) -> anyhow::Result<PathBuf> {
    let target = target_folder()?;
    let mut build = command(["cargo", "build", "--release", "--package", name]);
    if !run_logged(&mut build, &target.join("log/release-build.log"))?.succeeded {
        bail!("{name} cannot be built");
    }
    Ok(target.join("release").join(name))
}

/// Runs each fuzz target on its corpus and beyond; `true` if none found anything.
pub fn fuzz(options: &FuzzOptions) -> anyhow::Result<bool> {
    let tool = cargo_tool("cargo-fuzz", CARGO_FUZZ)?;
    // The instrumentation needs options that a stable compiler takes only when told to.
    let fuzz = |words: &[&str]| {
        let mut fuzz = std::process::Command::new(&tool);
        fuzz.args(words).env("RUSTC_BOOTSTRAP", "1");
        fuzz
    };
    let list = output_of(&mut fuzz(&["list"]))?;
    let mut targets: Vec<&str> = list.split_whitespace().collect();
    if let Some(wanted) = &options.target {
        targets.retain(|target| target == wanted);
    }
    if targets.is_empty() {
        bail!(
            "there is no such fuzz target; there are: {}",
            list.split_whitespace().collect::<Vec<_>>().join(" ")
        );
    }
    let mut steps = Steps::default();
    for target in targets {
        let time = format!("-max_total_time={}", options.seconds);
        let log = target_folder()?.join(format!("log/fuzz-{target}.log"));
        steps.run(target, || -> anyhow::Result<String> {
            // New inputs stay under the target folder; the corpus that is kept is only read.
            let found = target_folder()?.join("fuzz-corpus").join(target);
            std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
            let mut run = fuzz(&["run", target]);
            run.arg(&found);
            let kept = Path::new("fuzz/corpus").join(target);
            if kept.is_dir() {
                run.arg(kept.canonicalize()?);
            }
            run.args(["--", &time, "-rss_limit_mb=4096"]);
            if !run_logged(&mut run, &log)?.succeeded {
                bail!(
                    "found a failure, see {} and fuzz/artifacts/{target}",
                    log.display()
                );
            }
            Ok(format!("{} s without a finding", options.seconds))
        });
    }
    println!("\n{}", steps.table());
    Ok(steps.succeeded())
}

/// Checks licences, sources and banned crates of every dependency against `deny.toml`. Advisories are left out: their
/// data base is not a package of a registry, and a check that needs the internet is none for every machine.
pub fn deny() -> anyhow::Result<bool> {
    let tool = cargo_tool("cargo-deny", CARGO_DENY)?;
    let mut deny = std::process::Command::new(tool);
    deny.args(["--all-features", "check", "licenses", "sources", "bans"]);
    Ok(run_logged(&mut deny, &target_folder()?.join("log/deny.log"))?.succeeded)
}

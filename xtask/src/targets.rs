//! Type-checks for Windows and macOS the crates that build no C. Those that choose the provider of TLS's cryptography
//! are left out, since it is a C library and needs a C compiler for each target; and nothing is linked or run.

use std::ffi::OsStr;

use anyhow::bail;

use crate::process::{command, run_logged, target_folder};
use crate::steps::Steps;
use crate::test::cargo;

/// One Windows and one macOS, as rustup names them.
const TARGETS: [&str; 2] = ["x86_64-pc-windows-gnu", "aarch64-apple-darwin"];

/// The crates that build no C, from the lowest layer to the highest.
const PACKAGES: [&str; 3] = ["tidegate-wire", "tidegate-engine", "tidegate-reactor"];

/// What the command's help says beyond its first line.
pub const HELP: &str = "\
Type-check tidegate-wire, tidegate-engine and tidegate-reactor for x86_64-pc-windows-gnu and aarch64-apple-darwin.

Adds the targets by rustup, which needs its server unless they are there. Not checked: tidegate-load and tidegate, \
since their TLS builds aws-lc, a C library, and that needs a C compiler for each target. Tests are not checked either, \
and nothing is linked or run. No part of `cargo xtask test`, since not every machine reaches rustup's server.";

/// Checks each crate for each target; `true` if all of them compile without a warning.
pub fn run() -> anyhow::Result<bool> {
    let mut add = command(["rustup", "target", "add"]);
    add.args(TARGETS);
    if !run_logged(&mut add, &target_folder()?.join("log/targets-add.log"))?.succeeded {
        bail!(
            "rustup cannot add {}, see above: without their standard libraries nothing can be checked",
            TARGETS.join(" and ")
        );
    }
    let mut steps = Steps::default();
    for target in TARGETS {
        for package in PACKAGES {
            steps.run(&format!("{package}, {target}"), || {
                cargo(
                    &["check", "--package", package, "--target", target],
                    &format!("check-{package}-{target}"),
                    &[("RUSTFLAGS", OsStr::new("-D warnings"))],
                )
            });
        }
    }
    println!("\n{}", steps.table());
    println!("not checked: tidegate-load and tidegate, see `cargo xtask targets --help`");
    Ok(steps.succeeded())
}

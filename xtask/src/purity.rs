//! Proves that `wire` and `engine` see no clock, socket, file, thread, lock, async runtime or randomness of the
//! system, in three ways that each catch what the others may miss:
//!
//! 1. clippy with the `clippy.toml` of these crates, which knows what a name means wherever it came from;
//! 2. the crates they are built with: none that does such things may be among them;
//! 3. a scan of their source for words that have no business there, whatever a lint was told to allow.
//!
//! The check shows on every run that it can fail: a violation is planted and must be found.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::process::{command, output_of, run_quietly, target_folder};

/// The pure crates: their folder and their package.
const PURE: [(&str, &str); 2] = [
    ("crates/wire", "tidegate-wire"),
    ("crates/engine", "tidegate-engine"),
];

/// Crates that bring in what a pure crate must not see, and what that is.
const FORBIDDEN_CRATES: [(&str, &str); 37] = [
    ("tokio", "an async runtime"),
    ("async-std", "an async runtime"),
    ("smol", "an async runtime"),
    ("futures-executor", "an async runtime"),
    ("async-io", "an async runtime"),
    ("hyper", "HTTP, and with it a runtime"),
    ("mio", "sockets"),
    ("polling", "sockets"),
    ("io-uring", "sockets"),
    ("socket2", "sockets"),
    ("rustls", "TLS, which draws randomness"),
    ("libc", "system calls"),
    ("nix", "system calls"),
    ("rustix", "system calls"),
    ("windows-sys", "system calls"),
    ("getrandom", "randomness of the system"),
    ("rand", "randomness"),
    ("fastrand", "randomness"),
    ("oorandom", "randomness"),
    ("const-random", "randomness of the build"),
    ("uuid", "randomness or a clock"),
    ("chrono", "a clock"),
    ("time", "a clock"),
    ("quanta", "a clock"),
    ("coarsetime", "a clock"),
    ("minstant", "a clock"),
    ("tracing-subscriber", "output"),
    ("log", "output that a lock guards"),
    ("rayon", "threads"),
    ("rayon-core", "threads"),
    ("crossbeam-channel", "threads"),
    ("crossbeam-utils", "threads"),
    ("parking_lot", "locks"),
    ("dashmap", "locks"),
    ("num_cpus", "the machine"),
    ("core_affinity", "the machine"),
    ("tempfile", "files"),
];

/// Paths that pure source never names, outside comments and tests.
const FORBIDDEN_PATHS: [&str; 20] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime",
    "UNIX_EPOCH",
    "std::net",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "std::os::",
    "std::sync::mpsc",
    "std::hash::RandomState",
    "hash_map::RandomState",
    "RandomState::new",
    "DefaultHasher",
    "thread_local!",
    "Mutex",
    "RwLock",
    "Condvar",
];

/// What the planted crate does wrong, with the words that clippy must answer.
const PLANTED: &str = "\
//! Planted by `cargo xtask purity`.
/// Reads a clock.
pub fn clock() -> std::time::Duration { std::time::Instant::now().elapsed() }
/// Starts a thread.
pub fn thread() { std::thread::spawn(|| ()); }
/// Draws randomness.
pub fn randomness() -> usize { std::collections::HashMap::<u8, u8>::new().len() }
/// Opens a socket.
pub fn socket() -> bool { std::net::TcpListener::bind(\"127.0.0.1:0\").is_ok() }
/// Takes a lock.
pub fn lock() -> std::sync::Mutex<u8> { std::sync::Mutex::new(0) }
";

/// Each must be named in what clippy says of [`PLANTED`].
const PLANTED_FINDINGS: [&str; 5] = [
    "`std::time::Instant::now`",
    "`std::thread::spawn`",
    "`std::collections::HashMap::new`",
    "`std::net::TcpListener`",
    "`std::sync::Mutex`",
];

/// Runs all three checks; prints what it found.
pub fn run() -> anyhow::Result<bool> {
    check_rules_agree()?;
    check_planted_violation_is_found()?;
    clippy()?;
    let mut findings = Vec::new();
    for (folder, package) in PURE {
        let tree = output_of(&mut cargo_tree(package))?;
        findings.extend(forbidden_crates(package, &tree));
        for file in sources(&Path::new(folder).join("src"))? {
            let text =
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            findings.extend(forbidden_words(&file, &text));
        }
    }
    for finding in &findings {
        println!("impure: {finding}");
    }
    if findings.is_empty() {
        println!("wire and engine are pure; a planted violation was found");
    }
    Ok(findings.is_empty())
}

/// The two files of rules are one file in two places: clippy takes the one beside the crate's manifest.
fn check_rules_agree() -> anyhow::Result<()> {
    let [wire, engine] = PURE.map(|(folder, _)| {
        let path = Path::new(folder).join("clippy.toml");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    });
    if wire? != engine? {
        bail!("crates/wire/clippy.toml and crates/engine/clippy.toml differ: make them the same again");
    }
    Ok(())
}

/// Lints the pure crates as they are built for users, so that nothing else can turn the lints off.
fn clippy() -> anyhow::Result<()> {
    let mut clippy = command(["cargo", "clippy", "--quiet", "--lib"]);
    for (_, package) in PURE {
        clippy.args(["--package", package]);
    }
    clippy.args([
        "--",
        "--forbid",
        "clippy::disallowed_methods",
        "--forbid",
        "clippy::disallowed_types",
    ]);
    clippy.args(["--forbid", "clippy::disallowed_macros"]);
    run_quietly(&mut clippy, &target_folder()?.join("log/purity.log"))
}

/// Lints a crate of its own that breaks the rules, under the rules of the pure crates.
fn check_planted_violation_is_found() -> anyhow::Result<()> {
    let folder = target_folder()?.join("purity-planted");
    std::fs::create_dir_all(folder.join("src"))?;
    std::fs::copy(
        Path::new(PURE[1].0).join("clippy.toml"),
        folder.join("clippy.toml"),
    )?;
    let manifest = "[package]\nname = \"planted\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n";
    std::fs::write(folder.join("Cargo.toml"), manifest)?;
    std::fs::write(folder.join("src/lib.rs"), PLANTED)?;
    let output = command([
        "cargo",
        "clippy",
        "--quiet",
        "--offline",
        "--",
        "--deny",
        "warnings",
    ])
    .current_dir(&folder)
    .env("CARGO_TARGET_DIR", folder.join("target"))
    .output()
    .context("cannot start cargo clippy")?;
    let said = String::from_utf8_lossy(&output.stderr);
    for finding in PLANTED_FINDINGS {
        if output.status.success() || !said.contains(finding) {
            bail!("a planted {finding} was not found by clippy, so the check proves nothing:\n{said}");
        }
    }
    Ok(())
}

/// Lists what a package is built with, one a line. For one target whatever the machine, so that the answer is the
/// same everywhere: on some processors a crate asks the system which instructions there are, through `libc`.
fn cargo_tree(package: &str) -> Command {
    let mut tree = command(["cargo", "tree", "--package", package, "--edges", "normal"]);
    tree.args([
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--target",
        "x86_64-unknown-linux-gnu",
    ]);
    tree
}

/// The forbidden crates in what `cargo tree` printed, one package a line.
fn forbidden_crates(package: &str, tree: &str) -> Vec<String> {
    let mut found: Vec<String> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| FORBIDDEN_CRATES.iter().find(|(forbidden, _)| *forbidden == name))
        .map(|(name, brings)| format!("{package} is built with {name}, which brings {brings}"))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The forbidden words in one file of source, with their lines.
fn forbidden_words(file: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        // Unit tests stand last in a file, and may use what they like.
        if line.trim() == "#[cfg(test)]" {
            break;
        }
        let code = line.split_once("//").map_or(line, |(code, _)| code);
        let words = FORBIDDEN_PATHS.iter().filter(|path| names(code, path));
        found.extend(words.map(|path| format!("{}:{} names {path}", file.display(), number + 1)));
        if code.contains("allow(clippy::disallowed") {
            found.push(format!(
                "{}:{} turns the rules of purity off",
                file.display(),
                number + 1
            ));
        }
    }
    found
}

/// Whether `code` holds `path` where no longer word does.
fn names(code: &str, path: &str) -> bool {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(path).any(|(start, _)| {
        let before = code[..start].chars().next_back();
        let after = code[start + path.len()..].chars().next();
        !before.is_some_and(is_word) && (path.ends_with([':', '!']) || !after.is_some_and(is_word))
    })
}

/// Every Rust file under `folder`, in the order of their names.
fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scan finds as many violations in `text` as told.
    fn check(text: &str, expect: usize) {
        let found = forbidden_words(Path::new("planted.rs"), text);
        assert_eq!(found.len(), expect, "{text:?}: {found:?}");
    }

    #[test]
    fn planted_words_are_found() {
        check("let now = Instant::now();", 1);
        check("use std::net::TcpStream;", 1);
        check("use std::thread;\nuse std::env;", 2);
        check("static LOCK: Mutex<u8> = Mutex::new(0);", 1);
        check("thread_local! { static X: u8 = 1; }", 1);
        check("#[allow(clippy::disallowed_methods)]", 1);
    }

    #[test]
    fn a_finding_names_its_line() {
        let found = forbidden_words(Path::new("planted.rs"), "fn a() {}\nuse std::fs::File;\n");
        assert_eq!(found, ["planted.rs:2 names std::fs"]);
    }

    #[test]
    fn comments_tests_and_longer_words_are_no_violation() {
        check("// an Instant::now() would be wrong", 0);
        check("//! std::net is not for us", 0);
        check("#[cfg(test)]\nmod tests { use std::net::TcpStream; }", 0);
        check("struct MutexFree; fn to_system_time(now: Time) {}", 0);
        check("use std::time::Duration;", 0);
    }

    #[test]
    fn a_planted_crate_is_found_in_the_tree() {
        let tree =
            "tidegate-engine v0.1.0 (/w)\nbytes v1.12.1\ntokio v1.54.1\nmio v1.2.4\ntokio v1.54.1 (*)\n";
        let found = forbidden_crates("tidegate-engine", tree);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[1].contains("tokio, which brings an async runtime"),
            "{found:?}"
        );
    }

    #[test]
    fn innocent_crates_are_not() {
        assert!(
            forbidden_crates(
                "tidegate-wire",
                "bytes v1.12.1\nrandom-name v1.0.0\nzlib-rs v0.6.8\n"
            )
            .is_empty()
        );
    }
}

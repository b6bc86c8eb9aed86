//! Installs what a command needs and the machine lacks: Debian packages by apt-get, npm packages by `npm ci`, PyPI
//! packages in an environment under the target folder, cargo's tools under it too. What cannot be installed is a
//! failure with a sentence.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::process::{command, is_installed, name_of, run_quietly, target_folder};

/// Pinned: the last release that still makes environments for Python 2.7.
const VIRTUALENV: &str = "virtualenv==20.21.1";

/// Pinned: the newest release of the suite, which runs on Python 2.7 alone.
const AUTOBAHN: &str = "autobahntestsuite==25.10.1";

/// Names of a Python 2.7 on the path, in the order tried.
const PYTHON2_PROGRAMS: [&str; 4] = ["python2.7", "python2", "pypy2.7", "pypy"];

/// Debian and Ubuntu packages that hold one, newest systems last.
const PYTHON2_PACKAGES: [&str; 3] = ["python2.7", "python2", "pypy"];

/// Sees to it that each `program` is there, installing the Debian package that holds it where it is not.
pub fn programs(wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let absent: Vec<&(&str, &str)> = wanted
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = absent.iter().map(|(_, package)| *package).collect();
    debian(&packages)?;
    for (program, package) in absent {
        if !is_installed(program) {
            bail!("package {package} was installed, and {program} is still not on the path");
        }
    }
    Ok(())
}

/// Installs Debian packages, as root or through sudo.
fn debian(packages: &[&str]) -> anyhow::Result<()> {
    if !is_installed("apt-get") {
        bail!(
            "{} must be installed, and there is no apt-get here to do it with",
            packages.join(", ")
        );
    }
    apt_get(&["update", "-qq"])?;
    let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
    words.extend(packages);
    apt_get(&words)
}

/// Runs apt-get. In our own process group, so that sudo may ask for a password at the terminal.
fn apt_get(words: &[&str]) -> anyhow::Result<()> {
    let mut apt_get = if nix::unistd::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    };
    apt_get.args(words).env("DEBIAN_FRONTEND", "noninteractive");
    println!("$ {}", name_of(&apt_get));
    let status = apt_get
        .status()
        .with_context(|| format!("cannot run `{}`", name_of(&apt_get)))?;
    if !status.success() {
        bail!("`{}` failed", name_of(&apt_get));
    }
    Ok(())
}

/// Node.js and the npm packages of the rival servers, in `peers/node_modules`.
pub fn npm_packages() -> anyhow::Result<()> {
    programs(&[("node", "nodejs"), ("npm", "npm")])?;
    let marker = Path::new("peers/node_modules/.package-lock.json");
    if is_newer(marker, Path::new("peers/package-lock.json")) {
        return Ok(());
    }
    println!("installing the rival servers' npm packages");
    run_quietly(
        command(["npm", "ci"]).current_dir("peers"),
        &target_folder()?.join("log/npm.log"),
    )
}

/// Whether `file` exists and was written after `than`.
fn is_newer(file: &Path, than: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    matches!((modified(file), modified(than)), (Some(file), Some(than)) if file >= than)
}

/// The Python of an environment in which the Autobahn suite is installed.
pub fn autobahn() -> anyhow::Result<PathBuf> {
    let folder = target_folder()?.join("autobahn");
    let python = folder.join("python2/bin/python");
    let imports_suite = ["-c", "import autobahntestsuite.wstest"];
    if python.exists() && succeeds(Command::new(&python).args(imports_suite)) {
        return Ok(python);
    }
    let python2 = python2()?;
    println!(
        "installing {AUTOBAHN} under {} with {}",
        folder.display(),
        python2.display()
    );
    let log = target_folder()?.join("log/autobahn-install.log");
    let maker = python3_environment(&folder.join("python3"), VIRTUALENV)?;
    run_quietly(
        Command::new(maker.join("virtualenv"))
            .arg("-q")
            .arg("-p")
            .arg(python2)
            .arg(folder.join("python2")),
        &log,
    )?;
    run_quietly(
        Command::new(&python).args(["-m", "pip", "install", AUTOBAHN]),
        &log,
    )?;
    run_quietly(Command::new(&python).args(imports_suite), &log)?;
    Ok(python)
}

/// The programs' folder of a Python 3 environment at `folder` in which `package` is installed.
fn python3_environment(folder: &Path, package: &str) -> anyhow::Result<PathBuf> {
    programs(&[("python3", "python3")])?;
    // Debian splits the module that makes environments from Python itself.
    if !succeeds(&mut command(["python3", "-c", "import venv, ensurepip"])) {
        debian(&["python3-venv"])?;
    }
    let log = target_folder()?.join("log/python3.log");
    run_quietly(command(["python3", "-m", "venv", "--clear"]).arg(folder), &log)?;
    let programs = folder.join("bin");
    run_quietly(
        Command::new(programs.join("pip")).args(["install", package]),
        &log,
    )?;
    Ok(programs)
}

/// A Python 2.7, which the Autobahn suite cannot do without: the one `AUTOBAHN_PYTHON2` names, one on the path, one
/// of pyenv's, or one from a Debian package where the system's release still has it.
fn python2() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("AUTOBAHN_PYTHON2") {
        let named = PathBuf::from(named);
        if !is_python2(&named) {
            bail!(
                "AUTOBAHN_PYTHON2 names {}, which is no working Python 2.7",
                named.display()
            );
        }
        return Ok(named);
    }
    if let Some(found) = find_python2() {
        return Ok(found);
    }
    for package in PYTHON2_PACKAGES {
        if let Err(error) = debian(&[package]) {
            println!("{package}: {error:#}");
        } else if let Some(found) = find_python2() {
            return Ok(found);
        }
    }
    bail!(
        "the Autobahn suite needs Python 2.7, and neither the path, nor pyenv, nor this system's packages ({}) have \
         one: make it available (`pyenv install 2.7.18`) and name it in AUTOBAHN_PYTHON2",
        PYTHON2_PACKAGES.join(", ")
    )
}

/// A Python 2.7 that is on this machine already.
fn find_python2() -> Option<PathBuf> {
    let on_path = PYTHON2_PROGRAMS.iter().map(PathBuf::from);
    let mut of_pyenv = Vec::new();
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv"));
    if let Some(pyenv) = std::env::var_os("PYENV_ROOT").map(PathBuf::from).or(home)
        && let Ok(versions) = std::fs::read_dir(pyenv.join("versions"))
    {
        let folders = versions.flatten().map(|version| version.path());
        of_pyenv.extend(
            folders
                .map(|folder| folder.join("bin/python2.7"))
                .filter(|python| python.exists()),
        );
    }
    // A shim of pyenv may stand on the path and yet start nothing, so each is tried; pyenv's own come first.
    of_pyenv
        .into_iter()
        .chain(on_path)
        .find(|python| is_python2(python))
}

/// Whether this is a Python 2.7 with what the suite needs.
fn is_python2(python: &Path) -> bool {
    let check = "import sys, ssl, zlib; sys.exit(sys.version_info[:2] != (2, 7))";
    succeeds(Command::new(python).args(["-c", check]))
}

/// Whether the command starts and ends with code 0; its output goes nowhere.
fn succeeds(command: &mut Command) -> bool {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The program of a cargo tool such as `cargo-deny`: the one on the path, or one built under the target folder.
pub fn cargo_tool(name: &str, version: &str) -> anyhow::Result<PathBuf> {
    if is_installed(name) {
        return Ok(PathBuf::from(name));
    }
    let folder = target_folder()?.join("tools");
    let program = folder.join("bin").join(name);
    if !program.exists() {
        println!(
            "{name} is not installed: building {version} under {}, a few minutes",
            folder.display()
        );
        let mut install = command([
            "cargo",
            "install",
            name,
            "--version",
            version,
            "--locked",
            "--root",
        ]);
        // The tools do not share the project's build folder: their profiles and features are not ours.
        install.arg(&folder).env("CARGO_TARGET_DIR", folder.join("build"));
        run_quietly(
            &mut install,
            &target_folder()?.join("log").join(format!("{name}-install.log")),
        )?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_there_needs_no_package() {
        programs(&[("sh", "a-package-that-does-not-exist")]).unwrap();
    }

    #[test]
    fn a_python_3_is_no_python_2() {
        assert!(!is_python2(Path::new("python3")));
        assert!(!is_python2(Path::new("/nonexistent/python2.7")));
    }
}

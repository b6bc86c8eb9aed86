//! Measures Tidegate against the bare gathering loop and against other people's servers: in one go, in turn, the
//! server on one CPU and the loader on the other, a fresh server for each measurement. Ratios are taken within a run,
//! since a machine is not equally fast all day, and the median over the runs is judged.
//!
//! A whole comparison is kept under `bench-runs/`; a part of one, or a quick one, under the target folder.

mod experiments;
mod machine;
mod plan;
mod result;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::install::programs;
use crate::peers::Peer;
use crate::process::{command, create, run_quietly, spawn_piped, target_folder};
use crate::server::Server;
use crate::table::duration;
use crate::tools::release_program;
use experiments::EXPERIMENTS;
use machine::Machine;
use plan::{Experiment, LOADER_CPU, Subject};
use result::{Figure, Measurement, Results};

/// How long one measurement may take, connects included.
const MEASUREMENT_MAX: Duration = Duration::from_secs(240);

/// Descriptors for 16,000 connections and what else a server opens.
const DESCRIPTORS_MIN: u64 = 17_000;

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// How often everything is measured; the median is judged.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Rows to measure, separated by commas: fanout-1, fanout-8, fanout-32, fanout-16k, senders-100, storm, memory,
    /// idle, workers.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// One short run, to see that everything works; its figures prove nothing.
    #[arg(long)]
    quick: bool,
}

/// Measures, prints and keeps the tables; `true` if every target is met.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let experiments = choose(&options.only)?;
    let runs = if options.quick { 1 } else { options.runs.max(1) };
    let bench = Bench::prepare(&experiments, options.quick)?;
    let start = Instant::now();
    let mut results = Results::default();
    for run in 1..=runs {
        for experiment in experiments.iter().filter(|experiment| run <= experiment.runs_max) {
            for &subject in experiment.subjects {
                let figure = bench
                    .measure(experiment, subject)
                    .map_err(|error| format!("{error:#}"));
                let shown = match &figure {
                    Ok(figure) => experiment.metric.show(figure.value),
                    Err(error) => format!("no figure: {error}"),
                };
                println!(
                    "run {run} of {runs}: {:<12} {:<28} {shown}",
                    experiment.id,
                    subject.name()
                );
                results.add(Measurement {
                    experiment: experiment.id,
                    subject,
                    run,
                    figure,
                });
            }
        }
    }
    let whole = options.only.is_empty() && !options.quick;
    let (text, all_met) = page(&results, &experiments, runs, start.elapsed(), &bench.machine);
    println!("\n{text}");
    keep(&text, &results, whole, &bench.machine)?;
    Ok(all_met)
}

/// The experiments of these names, or all.
fn choose(only: &[String]) -> anyhow::Result<Vec<&'static Experiment>> {
    if let Some(unknown) = only
        .iter()
        .find(|name| !EXPERIMENTS.iter().any(|experiment| experiment.id == **name))
    {
        let names: Vec<&str> = EXPERIMENTS.iter().map(|experiment| experiment.id).collect();
        bail!("there is no row {unknown:?}; there are: {}", names.join(", "));
    }
    let chosen = |experiment: &&Experiment| only.is_empty() || only.iter().any(|name| name == experiment.id);
    Ok(EXPERIMENTS.iter().filter(chosen).collect())
}

/// All that measurements need, prepared once.
struct Bench {
    tidegate: PathBuf,
    folder: PathBuf,
    quick: bool,
    machine: Machine,
}

impl Bench {
    /// Builds, installs and checks what the experiments need.
    fn prepare(experiments: &[&Experiment], quick: bool) -> anyhow::Result<Bench> {
        if std::thread::available_parallelism()?.get() < 2 {
            bail!("a comparison needs two CPUs: one for the server, one for the loader");
        }
        programs(&[("taskset", "util-linux"), ("openssl", "openssl")])?;
        raise_descriptor_limit()?;
        let tidegate = release_program("tidegate")?;
        for peer in Peer::ALL {
            if experiments
                .iter()
                .any(|experiment| experiment.subjects.contains(&Subject::Peer(peer)))
            {
                peer.prepare()?;
            }
        }
        let folder = target_folder()?.join("compare");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        make_certificate(&folder)?;
        Ok(Bench {
            tidegate,
            folder,
            quick,
            machine: Machine::look()?,
        })
    }

    /// One measurement of one server, which is started for it and ended after it.
    fn measure(&self, experiment: &Experiment, subject: Subject) -> anyhow::Result<Figure> {
        let name = format!("{}-{}", experiment.id, subject.name().replace([' ', ','], ""));
        let log = self.folder.join(format!("{name}-server.log"));
        let mut server = Server::start(&mut self.server(subject)?, &log)?;
        let json = self.folder.join(format!("{name}.json"));
        // A result of an earlier run must not be taken for one of this.
        if json.exists() {
            std::fs::remove_file(&json).with_context(|| format!("cannot remove {}", json.display()))?;
        }
        let mut load = self.load(experiment, subject, &server, &json);
        let deadline = Instant::now() + MEASUREMENT_MAX;
        let (mut running, reader) = spawn_piped(&mut load)?;
        let drained = std::thread::spawn(move || std::io::read_to_string(reader).unwrap_or_default());
        let status = running.wait_until(deadline)?;
        drop(running);
        let said = drained.join().unwrap_or_default();
        server
            .check_alive()
            .with_context(|| format!("see {}", log.display()))?;
        let Some(status) = status else {
            bail!("took longer than {MEASUREMENT_MAX:?}, and was ended")
        };
        // The loader also fails where it has a result, but a bad one: its counts of faults then tell so.
        let text = std::fs::read_to_string(&json).map_err(|_| {
            let last: Vec<&str> = said
                .lines()
                .rev()
                .filter(|line| !line.trim().is_empty())
                .take(3)
                .collect();
            anyhow::anyhow!(
                "the loader ended ({status}) without a result: {}",
                last.join("; ")
            )
        })?;
        Figure::parse(&text, experiment.metric)
    }

    /// The command that starts a server on its CPUs.
    fn server(&self, subject: Subject) -> anyhow::Result<Command> {
        let mut server = command(["taskset", "-c", subject.cpus()]);
        let broadcast = |server: &mut Command, words: &[&str]| {
            server
                .arg(&self.tidegate)
                .args(["broadcast", "-addr", "127.0.0.1:0"])
                .args(words);
        };
        match subject {
            Subject::Tidegate => broadcast(&mut server, &["--workers", "1"]),
            Subject::TidegateDelayed => broadcast(&mut server, &["--workers", "1", "--flush-delay", "2ms"]),
            Subject::TidegateTwoWorkers => broadcast(&mut server, &["--workers", "2"]),
            Subject::TidegateTls => {
                broadcast(&mut server, &["--workers", "1"]);
                server.arg("--tls-cert").arg(self.folder.join("certificate.pem"));
                server.arg("--tls-key").arg(self.folder.join("key.pem"));
            }
            Subject::Limit => {
                server
                    .arg(&self.tidegate)
                    .args(["bench", "limit", "--addr", "127.0.0.1:0"]);
            }
            Subject::Peer(peer) => {
                server.args(peer.words()?);
            }
        }
        Ok(server)
    }

    /// The command that puts an experiment's load to a server, from the other CPU.
    fn load(&self, experiment: &Experiment, subject: Subject, server: &Server, json: &Path) -> Command {
        let scheme = if subject == Subject::TidegateTls {
            "wss"
        } else {
            "ws"
        };
        let path = match subject {
            Subject::Peer(peer) => peer.path(),
            _ => "/",
        };
        let mut load = command(["taskset", "-c", LOADER_CPU]);
        load.arg(&self.tidegate).arg("bench").args(experiment.load);
        load.arg("--url")
            .arg(format!("{scheme}://127.0.0.1:{}{path}", server.port));
        load.arg("--server-pid")
            .arg(server.pid().to_string())
            .arg("--json")
            .arg(json);
        if experiment.has_duration() {
            load.arg("--duration")
                .arg(format!("{}s", experiment.seconds(self.quick)));
        }
        if subject == Subject::Peer(Peer::SocketIo) {
            load.args(["--protocol", "socketio"]);
        }
        load
    }
}

/// Raises our limit of descriptors, which servers and loader inherit, as far as it goes.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < DESCRIPTORS_MIN {
        bail!(
            "16,000 connections need {DESCRIPTORS_MIN} descriptors, and the limit here is {hard}: raise `ulimit -Hn`"
        );
    }
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// A certificate that signs itself, for the measurements over TLS.
fn make_certificate(folder: &Path) -> anyhow::Result<()> {
    let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    if key.exists() && certificate.exists() {
        return Ok(());
    }
    let mut openssl = command([
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]);
    openssl
        .args(["-nodes", "-days", "3650", "-subj", "/CN=localhost", "-keyout"])
        .arg(key);
    openssl
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out"])
        .arg(certificate);
    run_quietly(&mut openssl, &folder.join("certificate.log"))
}

/// The page of a comparison, and whether every target is met.
fn page(
    results: &Results,
    experiments: &[&Experiment],
    runs: usize,
    took: Duration,
    machine: &Machine,
) -> (String, bool) {
    let (verdicts, all_met) = results.verdicts(experiments);
    let mut text = format!("# Comparison of {}\n\n{}", machine.date, machine.render());
    text.push_str(&format!(
        "Command: `cargo xtask compare`, {runs} runs, {}. Server on CPU 0, loader on CPU {LOADER_CPU} (two workers: \
         CPUs 0 and 1). Ratios of server CPU within a run, median over the runs.\n\n",
        duration(took.as_secs_f64())
    ));
    text.push_str(&format!("## What is demanded\n\n{}\n", verdicts.render()));
    text.push_str(&format!(
        "## Absolute figures, medians\n\n{}",
        results.absolutes(experiments).render()
    ));
    let failures = results.failures();
    if !failures.is_empty() {
        text.push_str(&format!("\n## Not measured\n\n- {}\n", failures.join("\n- ")));
    }
    (text, all_met)
}

/// Writes page and raw results: a whole comparison where it is kept, a part of one under the target folder.
fn keep(text: &str, results: &Results, whole: bool, machine: &Machine) -> anyhow::Result<()> {
    use std::io::Write;
    let folder = if whole {
        PathBuf::from("bench-runs")
    } else {
        target_folder()?.join("compare")
    };
    let name = format!("{}-{}", machine.date, machine.slug());
    let page = folder.join(format!("{name}.md"));
    create(&page)?.write_all(text.as_bytes())?;
    let raw = json!({ "machine": machine.to_json(), "measurements": results.to_json() });
    let path = folder.join(format!("{name}.json"));
    create(&path)?.write_all(format!("{raw:#}\n").as_bytes())?;
    println!("kept as {} and {}", page.display(), path.display());
    if !whole {
        println!("a part of a comparison, or a quick one, does not go under bench-runs/");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_name() {
        let chosen = choose(&["storm".into(), "fanout-8".into()]).unwrap();
        let names: Vec<&str> = chosen.iter().map(|experiment| experiment.id).collect();
        assert_eq!(names, ["fanout-8", "storm"]);
        assert_eq!(choose(&[]).unwrap().len(), EXPERIMENTS.len());
    }

    #[test]
    fn an_unknown_row_is_told_with_those_there_are() {
        let error = choose(&["fanout-9".into()]).unwrap_err().to_string();
        assert!(
            error.contains("fanout-9") && error.contains("fanout-16k"),
            "{error}"
        );
    }
}

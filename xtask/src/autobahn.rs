//! Runs the Autobahn suite's fuzzing client against `tidegate broadcast`, path `/echo`, and tells every case that is
//! neither OK nor INFORMATIONAL. A run in which a case is missing is no success either.

mod report;

use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::install;
use crate::process::{create, output_of, read_line, spawn_piped, target_folder};
use crate::server::Server;
use crate::table::duration;
use crate::tools::release_program;
use report::Report;

/// Clients at once: one for each core of a small machine.
const JOBS: usize = 2;

/// How long the suite may take against one driver before it is given up.
const RUN_MAX: Duration = Duration::from_secs(40 * 60);

/// The part that CI runs, under two minutes for both drivers: all but compression, and of each kind of compression
/// its smallest messages, middle ones and longer ones; the longest, which take most of the time, three times.
pub const PART_FOR_CI: &str = "\
    1.*,2.*,3.*,4.*,5.*,6.*,7.*,9.*,10.*,12.1.1,12.1.5,12.1.8,12.2.1,12.2.5,12.2.8,12.3.1,12.3.5,\
    12.3.8,12.4.1,12.4.5,12.4.8,12.5.1,12.5.5,12.5.8,13.1.1,13.1.5,13.1.8,13.2.1,13.2.5,13.2.8,\
    13.3.1,13.3.5,13.3.8,13.4.1,13.4.5,13.4.8,13.5.1,13.5.5,13.5.8,13.6.1,13.6.5,13.6.8,13.7.1,\
    13.7.5,13.7.8,12.1.10,13.1.10,13.4.10";

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Which driver serves.
    #[arg(long, value_enum, default_value_t = Drivers::Both)]
    driver: Drivers,
    /// Cases to run, separated by commas: `1.*,9.1.6`. Without it all 517.
    #[arg(long, default_value = "*")]
    cases: String,
    /// Test the server that listens here already instead, such as ws://127.0.0.1:9001/echo.
    #[arg(long, conflicts_with = "driver")]
    url: Option<String>,
}

/// Which drivers to run against.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Drivers {
    Epoll,
    Uring,
    Both,
}

/// Runs what the options ask for; `true` if every case was run and is OK or INFORMATIONAL.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    if let Some(url) = &options.url {
        let suite = Suite::prepare(&options.cases)?;
        return Ok(suite.run("named-server", url)?.succeeded());
    }
    let drivers: &[&str] = match options.driver {
        Drivers::Epoll => &["epoll"],
        Drivers::Uring => &["uring"],
        Drivers::Both => &["epoll", "uring"],
    };
    run_drivers(drivers, &options.cases)
}

/// Runs the cases that match `patterns` against a fresh server on each driver.
pub fn run_drivers(drivers: &[&str], patterns: &str) -> anyhow::Result<bool> {
    let suite = Suite::prepare(patterns)?;
    let program = release_program("tidegate")?;
    let mut all_succeeded = true;
    for driver in drivers {
        let log = target_folder()?.join(format!("log/autobahn-server-{driver}.log"));
        let mut server = Server::start(&mut broadcast(&program, driver), &log)?;
        let url = format!("ws://127.0.0.1:{}/echo", server.port);
        let report = suite.run(driver, &url)?;
        server
            .check_alive()
            .with_context(|| format!("driver {driver}, see {}", log.display()))?;
        all_succeeded &= report.succeeded();
    }
    Ok(all_succeeded)
}

/// The server as the suite needs it: messages of 16 MiB, and deflate.
fn broadcast(program: &Path, driver: &str) -> Command {
    let mut command = Command::new(program);
    command.args([
        "broadcast",
        "-addr",
        "127.0.0.1:0",
        "--driver",
        driver,
        "--max-message",
        "16MiB",
    ]);
    command.args([
        "--queue-bytes",
        "64MiB",
        "--queue-messages",
        "65536",
        "--compress",
        "shared",
    ]);
    command
}

/// The installed suite and the cases chosen from it.
struct Suite {
    python: PathBuf,
    cases: Vec<String>,
}

impl Suite {
    /// Installs the suite where it is absent and chooses its cases.
    fn prepare(patterns: &str) -> anyhow::Result<Suite> {
        let python = install::autobahn()?;
        let list = "from autobahntestsuite.case import Cases\nfor case in Cases: print(case.__name__)";
        let names = output_of(Command::new(&python).args(["-c", list]))?;
        let all = names
            .lines()
            .map(|name| name.trim_start_matches("Case").replace('_', "."));
        let cases: Vec<String> = all.filter(|case| matches_any(case, patterns)).collect();
        if cases.is_empty() {
            bail!("no case matches {patterns:?}");
        }
        Ok(Suite { python, cases })
    }

    /// Runs the chosen cases against `url`, several clients at once, and prints the report.
    fn run(&self, agent: &str, url: &str) -> anyhow::Result<Report> {
        let start = Instant::now();
        let folder = target_folder()?.join("autobahn/reports").join(agent);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        let run = Run {
            python: &self.python,
            agent,
            url,
            folder: &folder,
            deadline: start + RUN_MAX,
            total: self.cases.len(),
            begun: AtomicUsize::new(0),
        };
        println!("{agent}: {} cases against {url}", self.cases.len());
        let groups = Mutex::new(groups(&self.cases));
        let next = || groups.lock().ok().and_then(|mut groups| groups.pop_front());
        let work = || -> anyhow::Result<Report> {
            let mut report = Report::default();
            while let Some((name, cases)) = next() {
                report.merge(run.group(&name, &cases)?);
            }
            Ok(report)
        };
        let results: Vec<anyhow::Result<Report>> = thread::scope(|scope| {
            let workers: Vec<_> = (0..JOBS).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("a worker returns its failures"))
                .collect()
        });
        run.end_progress();
        let mut report = Report::expecting(&self.cases);
        for result in results {
            report.merge(result?);
        }
        print!("{}", report.render(agent, &folder));
        println!("{agent}: took {}", duration(start.elapsed().as_secs_f64()));
        Ok(report)
    }
}

/// One run of the suite against one server, shared by the threads that start its clients.
struct Run<'a> {
    python: &'a Path,
    agent: &'a str,
    url: &'a str,
    folder: &'a Path,
    deadline: Instant,
    total: usize,
    begun: AtomicUsize,
}

impl Run<'_> {
    /// Runs one client through its cases and reads what it reports.
    fn group(&self, name: &str, cases: &[String]) -> anyhow::Result<Report> {
        let folder = self.folder.join(name);
        let specification = json!({
            "outdir": folder,
            "servers": [{ "agent": self.agent, "url": self.url }],
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        });
        let path = self.folder.join(format!("{name}.json"));
        create(&path)?.write_all(specification.to_string().as_bytes())?;
        let mut log = create(&self.folder.join(format!("{name}.log")))?;
        let mut client = Command::new(self.python);
        // Unbuffered, so that progress is seen as it is made.
        client
            .args([
                "-u",
                "-m",
                "autobahntestsuite.wstest",
                "-m",
                "fuzzingclient",
                "-s",
            ])
            .arg(&path);
        let (mut running, mut reader) = spawn_piped(client.current_dir(self.folder))?;
        let finished = thread::scope(|scope| {
            scope.spawn(|| {
                while let Ok(Some(line)) = read_line(&mut reader) {
                    // A log that cannot be written must not stop the pipe from being drained.
                    let _ = writeln!(log, "{line}");
                    if line.starts_with("Running test case ID ") {
                        self.show_progress();
                    }
                }
            });
            running.wait_until(self.deadline)
        })?;
        if finished.is_none() {
            println!("{}: group {name} was given up after {RUN_MAX:?}", self.agent);
        }
        let index = folder.join("index.json");
        match std::fs::read_to_string(&index) {
            Ok(text) => Report::parse(&text).with_context(|| format!("cannot read {}", index.display())),
            // Its cases then count as not run; the log says why.
            Err(_) => Ok(Report::default()),
        }
    }

    /// Counts a case that begins: one line rewritten on a terminal, a line for each fifty elsewhere.
    fn show_progress(&self) {
        let begun = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        if std::io::stdout().is_terminal() {
            print!("\r{}: case {begun} of {}", self.agent, self.total);
            // A terminal that does not take the line is not worth a failure.
            let _ = std::io::stdout().flush();
        } else if begun.is_multiple_of(50) {
            println!("{}: case {begun} of {}", self.agent, self.total);
        }
    }

    /// Leaves the line of progress.
    fn end_progress(&self) {
        if std::io::stdout().is_terminal() {
            println!();
        }
    }
}

/// The cases of each client. Sections 12 and 13 are nine tenths of the time, so each of their parts is one group,
/// and the rest is another, which comes first.
fn groups(cases: &[String]) -> VecDeque<(String, Vec<String>)> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for case in cases {
        let mut parts = case.split('.');
        let name = match (parts.next(), parts.next()) {
            (Some(section @ ("12" | "13")), Some(part)) => format!("{section}.{part}"),
            _ => "00-rest".to_owned(),
        };
        groups.entry(name).or_default().push(case.clone());
    }
    groups.into_iter().collect()
}

/// Whether the case matches one of the patterns, which are separated by commas.
fn matches_any(case: &str, patterns: &str) -> bool {
    patterns.split(',').any(|pattern| {
        let pattern = pattern.trim();
        match pattern.strip_suffix('*') {
            Some(prefix) => case.starts_with(prefix),
            None => case == pattern,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(case: &str, patterns: &str, expect: bool) {
        assert_eq!(matches_any(case, patterns), expect, "{case} {patterns}");
    }

    #[test]
    fn patterns_choose_cases() {
        check("1.1.1", "*", true);
        check("1.1.1", "1.*", true);
        check("10.1.1", "1.*", false);
        check("9.1.6", "1.*, 9.1.6", true);
        check("9.1.60", "9.1.6", false);
    }

    #[test]
    fn long_sections_are_groups_of_their_own() {
        let cases = ["1.1.1", "9.1.6", "12.1.1", "12.1.2", "13.4.9"].map(str::to_owned);
        let groups = groups(&cases);
        let names: Vec<&str> = groups.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["00-rest", "12.1", "13.4"]);
        assert_eq!(groups[0].1, ["1.1.1", "9.1.6"]);
    }
}

//! The machine and the programs of a comparison, for the page that is kept.

use serde_json::{Value, json};

use crate::process::{command, output_of};

/// What a reader must know to judge figures.
pub struct Machine {
    /// Day of the comparison, UTC, as 2026-11-20.
    pub date: String,
    cpu: String,
    cpus: usize,
    memory: String,
    kernel: String,
    versions: Vec<(&'static str, String)>,
}

impl Machine {
    /// Looks at this machine.
    pub fn look() -> anyhow::Result<Machine> {
        let cpu_text = std::fs::read_to_string("/proc/cpuinfo")?;
        let memory_text = std::fs::read_to_string("/proc/meminfo")?;
        let versions = vec![
            (
                "tidegate",
                first_line(&["git", "describe", "--always", "--dirty"]),
            ),
            (
                "rustc",
                first_line(&["rustc", "--version"])
                    .trim_start_matches("rustc ")
                    .to_owned(),
            ),
            ("node", first_line(&["node", "--version"])),
            ("ws", npm_version("ws")),
            ("socket.io", npm_version("socket.io")),
            ("tokio-tungstenite", locked_version("tokio-tungstenite")),
        ];
        Ok(Machine {
            date: output_of(&mut command(["date", "-u", "+%Y-%m-%d"]))?
                .trim()
                .to_owned(),
            cpu: field(&cpu_text, "model name").unwrap_or_else(|| "unknown".into()),
            cpus: std::thread::available_parallelism()?.get(),
            memory: field(&memory_text, "MemTotal").unwrap_or_else(|| "unknown".into()),
            kernel: output_of(&mut command(["uname", "-sr"]))?.trim().to_owned(),
            versions,
        })
    }

    /// A name for files: the CPU's model and how many of them, such as `amd-epyc-7b13-2-cpus`.
    pub fn slug(&self) -> String {
        let letters = self.cpu.to_lowercase().replace("(r)", "").replace("(tm)", "");
        let words = letters.split(|letter: char| !letter.is_ascii_alphanumeric());
        let words: Vec<&str> = words.filter(|word| !word.is_empty() && *word != "cpu").collect();
        format!("{}-{}-cpus", words.join("-"), self.cpus)
    }

    /// The head of the page.
    pub fn render(&self) -> String {
        let versions: Vec<String> = self
            .versions
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        format!(
            "Date: {}  \nMachine: {}, {} CPUs, {} of memory, {}  \nVersions: {}\n",
            self.date,
            self.cpu,
            self.cpus,
            self.memory,
            self.kernel,
            versions.join(", ")
        )
    }

    /// The same for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "date": self.date,
            "cpu": self.cpu,
            "cpus": self.cpus,
            "memory": self.memory,
            "kernel": self.kernel,
            "versions": self.versions.iter().map(|(name, version)| ((*name).to_owned(), json!(version)))
                .collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// What a command printed first; a version that cannot be had is told as unknown.
fn first_line(words: &[&str]) -> String {
    let output = output_of(std::process::Command::new(words[0]).args(&words[1..])).unwrap_or_default();
    output.lines().next().unwrap_or("unknown").to_owned()
}

/// The version of an npm package that is installed for the rivals.
fn npm_version(package: &str) -> String {
    let text =
        std::fs::read_to_string(format!("peers/node_modules/{package}/package.json")).unwrap_or_default();
    let manifest: Value = serde_json::from_str(&text).unwrap_or_default();
    manifest["version"].as_str().unwrap_or("unknown").to_owned()
}

/// The version of a crate in the lock file of the tokio-tungstenite server.
fn locked_version(package: &str) -> String {
    let lock = std::fs::read_to_string("peers/tungstenite/Cargo.lock").unwrap_or_default();
    let mut lines = lock
        .lines()
        .skip_while(|line| *line != format!("name = \"{package}\""));
    let version = lines.nth(1).and_then(|line| line.strip_prefix("version = \""));
    version
        .map_or("unknown", |version| version.trim_end_matches('"'))
        .to_owned()
}

/// The value of a line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_a_file_name() {
        let machine = Machine {
            date: "2026-11-20".into(),
            cpu: "Intel(R) Xeon(R) CPU @ 2.20GHz".into(),
            cpus: 2,
            memory: "1 kB".into(),
            kernel: "Linux".into(),
            versions: Vec::new(),
        };
        assert_eq!(machine.slug(), "intel-xeon-2-20ghz-2-cpus");
    }

    #[test]
    fn fields_are_read_from_proc() {
        assert_eq!(
            field("processor\t: 0\nmodel name\t: A CPU: fast\n", "model name").unwrap(),
            "A CPU: fast"
        );
        assert_eq!(field("MemTotal:       24 kB\n", "MemTotal").unwrap(), "24 kB");
        assert!(field("", "MemTotal").is_none());
    }
}

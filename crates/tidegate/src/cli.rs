//! The command line of the `tidegate` program: reading it, and telling what is wrong with it in one line.
//!
//! Flags may be written with one dash or two (`-addr=:9002`, `--addr :9002`): argv is brought into one spelling before clap
//! reads it. Nothing here starts anything: parsing ends in a [`BroadcastConfig`](crate::BroadcastConfig).

pub mod broadcast;

use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// The program's arguments.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    about = "A real-time WebSocket server and gateway",
    after_help = "Examples:\n  tidegate broadcast                     serve on port 9002, every message to all others\n  \
                  tidegate broadcast --help              all flags, with examples\n  \
                  tidegate bench --help                  measure a server",
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a broadcast room: each message goes to all other connections, unchanged
    Broadcast(Box<broadcast::BroadcastArgs>),
    /// Measure a WebSocket server with real sockets
    Bench(Box<load::cli::BenchArgs>),
}

/// Why there is no command to run.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Help or version was asked for: print this and exit with 0.
    Told(String),
    /// A subcommand is missing: print this help on standard error; exit with 2.
    Unfinished(String),
    /// The arguments are wrong: one line that says what and what to do; exit with 2.
    Wrong(String),
}

/// Reads the arguments, the program's name first.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.len() <= 1 {
        return Err(Stop::Told(Cli::command().render_help().to_string()));
    }
    let subcommand = arguments[1].clone();
    Cli::try_parse_from(with_two_dashes(arguments)).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Told(error.render().to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Stop::Unfinished(error.render().to_string()),
        _ => Stop::Wrong(one_line(&error, &subcommand)),
    })
}

/// Gives each word that begins with a single dash and a letter, and is longer than that letter, its second dash.
///
/// The program has no clusters of one-letter flags, so nothing is lost; and a misspelt `-adr` meets clap's
/// suggestion of `--addr`. Numbers (`-1`) and all after `--` stay as they are.
fn with_two_dashes(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut flags_ended = false;
    let second_dash = |argument: OsString| {
        flags_ended |= argument == "--";
        if flags_ended || !is_single_dash_word(&argument) {
            return argument;
        }
        let mut spelt = OsString::from("-");
        spelt.push(argument);
        spelt
    };
    arguments.into_iter().map(second_dash).collect()
}

fn is_single_dash_word(argument: &OsStr) -> bool {
    let bytes = argument.as_encoded_bytes();
    bytes.len() > 2 && bytes[0] == b'-' && bytes[1].is_ascii_alphabetic() && bytes[2] != b'='
}

/// Clap's error as one line: what is wrong, its tips, and where to read more.
fn one_line(error: &clap::Error, subcommand: &OsStr) -> String {
    let rendered = error.render().to_string();
    let said = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty());
    // A line that ends with a colon introduces the next.
    let mut line = said.collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    let known = Cli::command()
        .get_subcommands()
        .any(|command| OsStr::new(command.get_name()) == subcommand);
    let help = if known {
        format!("tidegate {} --help", subcommand.display())
    } else {
        "tidegate --help".to_owned()
    };
    line.push_str(&format!(" (see '{help}')"));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn one_dash_becomes_two() {
        let spelt = with_two_dashes(words(
            "tidegate broadcast -addr :9002 -batch=64 -numa -1 --ring 8 -h -- -addr",
        ));
        assert_eq!(
            spelt,
            words("tidegate broadcast --addr :9002 --batch=64 --numa -1 --ring 8 -h -- -addr")
        );
    }

    #[test]
    fn both_spellings_give_the_same() {
        let first = parse(words(
            "tidegate broadcast -addr :1 -batch=7 -ring=16 -workers 2 -numa -1",
        ));
        let second = parse(words(
            "tidegate broadcast --addr=:1 --batch 7 --ring 16 --workers=2 --numa=-1",
        ));
        assert_eq!(
            format!("{:?}", first.expect("parses")),
            format!("{:?}", second.expect("parses"))
        );
    }

    #[test]
    fn a_misspelt_flag_gets_one_line_with_a_suggestion() {
        let Err(Stop::Wrong(line)) = parse(words("tidegate broadcast -adr :1")) else {
            panic!("accepted")
        };
        assert!(!line.contains('\n'), "{line}");
        assert!(
            line.contains("'--addr'") && line.contains("tidegate broadcast --help"),
            "{line}"
        );
    }

    #[test]
    fn a_bad_value_gets_one_line_that_says_how_to_write_it() {
        let Err(Stop::Wrong(line)) = parse(words("tidegate broadcast --max-message lots")) else {
            panic!("accepted")
        };
        assert!(!line.contains('\n'), "{line}");
        assert!(line.contains("--max-message") && line.contains("64KiB"), "{line}");
    }

    #[test]
    fn help_is_told_not_an_error() {
        assert!(matches!(parse(words("tidegate")), Err(Stop::Told(text)) if text.contains("broadcast")));
        assert!(
            matches!(parse(words("tidegate broadcast -help")), Err(Stop::Told(text)) if text.contains("--addr"))
        );
    }
}

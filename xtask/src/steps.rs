//! The steps of a long command: each is run, timed and kept for the closing table, and a failed one does not keep
//! the later ones from running, so that one run tells all that is wrong.

use std::fmt::Display;
use std::time::Instant;

use crate::table::{Table, duration};

/// What was run so far. Made by the command that runs the steps.
#[derive(Default)]
pub struct Steps {
    done: Vec<Step>,
}

/// One step that has ended.
struct Step {
    name: String,
    seconds: f64,
    result: Result<String, String>,
}

impl Steps {
    /// Runs one step; its answer is a remark for the table.
    pub fn run<E: Display>(&mut self, name: &str, step: impl FnOnce() -> Result<String, E>) {
        println!("\n== {name}");
        let start = Instant::now();
        let result = step().map_err(|error| format!("{error:#}"));
        if let Err(error) = &result {
            println!("{name}: {error}");
        }
        self.done.push(Step {
            name: name.to_owned(),
            seconds: start.elapsed().as_secs_f64(),
            result,
        });
    }

    /// Whether every step succeeded.
    pub fn succeeded(&self) -> bool {
        self.done.iter().all(|step| step.result.is_ok())
    }

    /// One row for each step, with the first line of what it said.
    pub fn table(&self) -> String {
        let mut table = Table::new(["step", "result", "time", "remark"]);
        for step in &self.done {
            let (result, remark) = match &step.result {
                Ok(remark) => ("ok", remark),
                Err(error) => ("FAILED", error),
            };
            let remark = remark.lines().next().unwrap_or_default();
            table.row(vec![
                step.name.clone(),
                result.into(),
                duration(step.seconds),
                remark.into(),
            ]);
        }
        table.render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_fails_the_whole_and_stands_in_the_table() {
        let mut steps = Steps::default();
        steps.run("first", || Err::<String, _>("it broke\nat length"));
        steps.run("second", || Ok::<_, String>("fine".into()));
        assert!(!steps.succeeded());
        let table = steps.table();
        assert!(
            table.contains("| FAILED |") && table.contains("it broke"),
            "{table}"
        );
        assert!(table.contains("fine") && !table.contains("at length"), "{table}");
    }

    #[test]
    fn steps_that_all_succeed_succeed() {
        let mut steps = Steps::default();
        steps.run("only", || Ok::<_, String>(String::new()));
        assert!(steps.succeeded());
    }
}

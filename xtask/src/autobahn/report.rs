//! What the suite found: its index files read, joined, and judged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::table::Table;

/// Behaviours that are as the RFC wants them.
const GOOD: [&str; 2] = ["OK", "INFORMATIONAL"];

/// How one case ended, in the words of the suite.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    behavior: String,
    behavior_close: String,
}

impl Verdict {
    /// Whether both the answer and the close handshake are good.
    fn is_good(&self) -> bool {
        GOOD.contains(&self.behavior.as_str()) && GOOD.contains(&self.behavior_close.as_str())
    }
}

/// The number of a case, so that 9.2 stands before 10.1.
type CaseNumber = Vec<u32>;

/// Cases that were run and those that should have been.
#[derive(Debug, Default)]
pub struct Report {
    verdicts: BTreeMap<CaseNumber, Verdict>,
    expected: BTreeSet<CaseNumber>,
}

impl Report {
    /// A report that is complete once it holds these cases.
    pub fn expecting(cases: &[String]) -> Report {
        let expected = cases.iter().filter_map(|case| number_of(case)).collect();
        Report {
            verdicts: BTreeMap::new(),
            expected,
        }
    }

    /// Reads an `index.json` of the suite: agent, case, verdict.
    pub fn parse(text: &str) -> anyhow::Result<Report> {
        let index: BTreeMap<String, BTreeMap<String, Value>> =
            serde_json::from_str(text).context("no index of the Autobahn suite")?;
        let mut report = Report::default();
        for (case, value) in index.into_values().flatten() {
            let word = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
            let (Some(number), Some(behavior), Some(behavior_close)) =
                (number_of(&case), word("behavior"), word("behaviorClose"))
            else {
                bail!("case {case:?} has no number, behavior or behaviorClose");
            };
            report.verdicts.insert(
                number,
                Verdict {
                    behavior,
                    behavior_close,
                },
            );
        }
        Ok(report)
    }

    /// Adds the cases of another report.
    pub fn merge(&mut self, other: Report) {
        self.verdicts.extend(other.verdicts);
        self.expected.extend(other.expected);
    }

    /// Whether every expected case was run and every case that was run is good.
    pub fn succeeded(&self) -> bool {
        !self.verdicts.is_empty()
            && self.missing().next().is_none()
            && self.verdicts.values().all(Verdict::is_good)
    }

    /// The expected cases that have no verdict.
    fn missing(&self) -> impl Iterator<Item = &CaseNumber> {
        self.expected
            .iter()
            .filter(|case| !self.verdicts.contains_key(*case))
    }

    /// The counts by behaviour, then each case that is not good, with the page that tells why.
    pub fn render(&self, agent: &str, folder: &Path) -> String {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for verdict in self.verdicts.values() {
            *counts
                .entry((&verdict.behavior, &verdict.behavior_close))
                .or_default() += 1;
        }
        let mut table = Table::new(["driver", "behaviour", "close behaviour", "cases"]);
        for ((behavior, close), count) in counts {
            table.row(vec![
                agent.into(),
                behavior.into(),
                close.into(),
                count.to_string(),
            ]);
        }
        let missing: Vec<String> = self.missing().map(name_of).collect();
        if !missing.is_empty() {
            table.row(vec![
                agent.into(),
                "NOT RUN".into(),
                "-".into(),
                missing.len().to_string(),
            ]);
        }
        let mut text = table.render();
        for (number, verdict) in self.verdicts.iter().filter(|(_, verdict)| !verdict.is_good()) {
            text.push_str(&format!(
                "{agent}: {} is {}, close {}; see *_case_{}.html under {}\n",
                name_of(number),
                verdict.behavior,
                verdict.behavior_close,
                name_of(number).replace('.', "_"),
                folder.display()
            ));
        }
        if !missing.is_empty() {
            text.push_str(&format!(
                "{agent}: not run: {}; see the logs there\n",
                missing.join(", ")
            ));
        }
        text
    }
}

/// `9.1.6` as numbers.
fn number_of(case: &str) -> Option<CaseNumber> {
    case.split('.').map(|part| part.parse().ok()).collect()
}

/// Numbers as `9.1.6`.
fn name_of(number: &CaseNumber) -> String {
    number.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index of one agent with these cases.
    fn index(cases: &[(&str, &str, &str)]) -> String {
        let cases: Vec<String> = cases
            .iter()
            .map(|(case, behavior, close)| {
                format!(
                    r#""{case}": {{"behavior": "{behavior}", "behaviorClose": "{close}", "duration": 1}}"#
                )
            })
            .collect();
        format!(r#"{{"agent": {{{}}}}}"#, cases.join(","))
    }

    /// Whether a run of these cases, of which all are expected, succeeds.
    fn check(cases: &[(&str, &str, &str)], expect: bool) {
        let names: Vec<String> = cases.iter().map(|(case, ..)| (*case).to_owned()).collect();
        let mut report = Report::expecting(&names);
        report.merge(Report::parse(&index(cases)).unwrap());
        assert_eq!(report.succeeded(), expect, "{cases:?}");
    }

    #[test]
    fn only_ok_and_informational_succeed() {
        check(
            &[
                ("1.1.1", "OK", "OK"),
                ("7.13.1", "INFORMATIONAL", "INFORMATIONAL"),
            ],
            true,
        );
        check(&[("1.1.1", "OK", "OK"), ("6.4.1", "NON-STRICT", "OK")], false);
        check(&[("1.1.1", "FAILED", "OK")], false);
        check(&[("12.1.1", "UNIMPLEMENTED", "OK")], false);
        check(&[("7.1.1", "OK", "WRONG CODE")], false);
    }

    #[test]
    fn a_missing_case_fails_the_run_and_is_named() {
        let mut report = Report::expecting(&["1.1.1".into(), "9.1.6".into()]);
        report.merge(Report::parse(&index(&[("1.1.1", "OK", "OK")])).unwrap());
        assert!(!report.succeeded());
        let text = report.render("epoll", Path::new("reports"));
        assert!(text.contains("not run: 9.1.6"), "{text}");
    }

    #[test]
    fn a_run_of_nothing_is_no_success() {
        assert!(!Report::default().succeeded());
    }

    #[test]
    fn bad_cases_stand_in_the_text_in_order() {
        let cases = [
            ("10.1.1", "FAILED", "OK"),
            ("9.2.1", "FAILED", "UNCLEAN"),
            ("1.1.1", "OK", "OK"),
        ];
        let text = Report::parse(&index(&cases))
            .unwrap()
            .render("epoll", Path::new("reports"));
        let (first, second) = (
            text.find("9.2.1 is FAILED").unwrap(),
            text.find("10.1.1 is FAILED").unwrap(),
        );
        assert!(first < second, "{text}");
        assert!(!text.contains("1.1.1 is OK"));
    }

    #[test]
    fn an_index_that_is_none_is_an_error() {
        assert!(Report::parse("[]").is_err());
        assert!(Report::parse(r#"{"agent": {"1.1.1": {"behavior": "OK"}}}"#).is_err());
        assert!(Report::parse(r#"{"agent": {"x": {"behavior": "OK", "behaviorClose": "OK"}}}"#).is_err());
    }
}

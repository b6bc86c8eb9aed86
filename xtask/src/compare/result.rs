//! Figures of a comparison: read, kept by run, and judged by the median of the ratios within a run.

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::plan::{Experiment, Metric, Row, Subject, Target};
use crate::table::Table;

/// One measurement of one server.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// [`Experiment::id`].
    pub experiment: &'static str,
    /// Who was measured.
    pub subject: Subject,
    /// In which run, from 1.
    pub run: usize,
    /// The figure, or why there is none.
    pub figure: Result<Figure, String>,
}

/// What a measurement found.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// In the unit of the experiment's metric.
    pub value: f64,
    /// End-to-end latency, where messages were sent.
    pub p99_us: Option<f64>,
    /// Deliveries a second, where messages were sent.
    pub deliveries_per_second: Option<f64>,
    /// Share of a core that the loader took: near 1 it was the bottleneck.
    pub loader_cpu_share: Option<f64>,
    /// Messages lost, doubled or reordered, and connections that failed.
    pub faults: u64,
    /// All that the load generator wrote.
    pub raw: Value,
}

impl Figure {
    /// Reads the load generator's result.
    pub fn parse(text: &str, metric: Metric) -> anyhow::Result<Figure> {
        let mut raw: Value = serde_json::from_str(text).context("the load generator's result is no JSON")?;
        // Curves are for plots; kept for every measurement they would be most of the file.
        for curve in ["series", "latency_curve"] {
            raw.as_object_mut()
                .context("the load generator's result is no object")?
                .remove(curve);
        }
        let number = |field: &str| raw.get(field).and_then(Value::as_f64);
        let value = number(metric.field())
            .with_context(|| format!("the result has no number {:?}", metric.field()))?;
        if !value.is_finite() || value < 0.0 {
            bail!("the result is no measurement: {value}");
        }
        let p99_us = raw
            .get("latency_us")
            .and_then(|latency| latency.get("p99"))
            .and_then(Value::as_f64);
        Ok(Figure {
            value,
            p99_us,
            deliveries_per_second: number("deliveries_per_s").filter(|rate| *rate > 0.0),
            loader_cpu_share: number("loader_cpu_share"),
            faults: ["violations", "failures"]
                .iter()
                .filter_map(|field| raw.get(field))
                .map(sum_of)
                .sum(),
            raw,
        })
    }
}

/// The sum of all numbers in a value: a count, or counts by reason.
fn sum_of(value: &Value) -> u64 {
    match value {
        Value::Number(number) => number.as_u64().unwrap_or(0),
        Value::Array(values) => values.iter().map(sum_of).sum(),
        Value::Object(fields) => fields.values().map(sum_of).sum(),
        _ => 0,
    }
}

/// All measurements of a comparison, in the order made.
#[derive(Debug, Default)]
pub struct Results {
    measurements: Vec<Measurement>,
}

/// How a row came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The median over the runs.
    pub median: f64,
    /// The smallest and largest over the runs.
    pub range: (f64, f64),
    /// The median of the subject's P99, where the row bounds it.
    pub p99_us: Option<f64>,
    /// Whether the target is met.
    pub met: bool,
}

impl Results {
    /// Adds a measurement.
    pub fn add(&mut self, measurement: Measurement) {
        self.measurements.push(measurement);
    }

    /// The figures of a subject in an experiment, by run.
    fn figures(&self, experiment: &Experiment, subject: Subject) -> impl Iterator<Item = (usize, &Figure)> {
        let id = experiment.id;
        self.measurements
            .iter()
            .filter(move |found| found.experiment == id && found.subject == subject)
            .filter_map(|found| found.figure.as_ref().ok().map(|figure| (found.run, figure)))
    }

    /// Judges a row; `None` if nothing was measured for it in any run.
    pub fn judge(&self, experiment: &Experiment, row: &Row) -> Option<Judgement> {
        let mut values: Vec<f64> = self
            .figures(experiment, row.subject)
            .filter_map(|(run, figure)| match row.divided_by {
                None => Some(figure.value),
                Some(other) => {
                    let (_, other) = self.figures(experiment, other).find(|(found, _)| *found == run)?;
                    Some(figure.value / other.value)
                }
            })
            .filter(|value| value.is_finite())
            .collect();
        let median = median(&mut values)?;
        let mut latencies: Vec<f64> = self
            .figures(experiment, row.subject)
            .filter_map(|(_, figure)| figure.p99_us)
            .collect();
        let p99_us = row.p99_us_max.and_then(|_| self::median(&mut latencies));
        let latency_met = match row.p99_us_max {
            None => true,
            Some(bound) => p99_us.is_some_and(|p99| p99 < bound),
        };
        Some(Judgement {
            median,
            range: (values[0], values[values.len() - 1]),
            p99_us,
            met: row.target.is_met(median) && latency_met,
        })
    }

    /// The table of what is demanded, and whether all of it is met.
    pub fn verdicts(&self, experiments: &[&Experiment]) -> (Table, bool) {
        let mut table = Table::new([
            "row",
            "measure",
            "target",
            "median",
            "smallest - largest",
            "verdict",
        ]);
        let mut all_met = true;
        for experiment in experiments {
            for row in experiment.rows {
                let judgement = self.judge(experiment, row);
                all_met &= judgement.as_ref().is_some_and(|judgement| judgement.met);
                table.row(verdict_cells(experiment, row, judgement.as_ref()));
            }
        }
        (table, all_met)
    }

    /// The table of absolute figures: medians over the runs.
    pub fn absolutes(&self, experiments: &[&Experiment]) -> Table {
        let mut table = Table::new([
            "row",
            "server",
            "median",
            "deliveries/s",
            "P99",
            "loader's CPU",
            "runs",
            "faults",
        ]);
        for experiment in experiments {
            for &subject in experiment.subjects {
                let figures: Vec<&Figure> = self
                    .figures(experiment, subject)
                    .map(|(_, figure)| figure)
                    .collect();
                let middle = |of: &dyn Fn(&Figure) -> Option<f64>, show: &dyn Fn(f64) -> String| {
                    let mut values: Vec<f64> = figures.iter().filter_map(|figure| of(figure)).collect();
                    median(&mut values).map_or_else(|| "-".to_owned(), show)
                };
                table.row(vec![
                    experiment.id.into(),
                    subject.name().into(),
                    middle(&|figure| Some(figure.value), &|value| {
                        experiment.metric.show(value)
                    }),
                    middle(&|figure| figure.deliveries_per_second, &|value| {
                        format!("{value:.0}")
                    }),
                    middle(&|figure| figure.p99_us, &|value| format!("{:.2} ms", value / 1e3)),
                    middle(&|figure| figure.loader_cpu_share, &|value| {
                        format!("{:.0} %", value * 100.0)
                    }),
                    figures.len().to_string(),
                    figures
                        .iter()
                        .map(|figure| figure.faults)
                        .sum::<u64>()
                        .to_string(),
                ]);
            }
        }
        table
    }

    /// What was tried and has no figure, a sentence each.
    pub fn failures(&self) -> Vec<String> {
        self.measurements
            .iter()
            .filter_map(|found| {
                let error = found.figure.as_ref().err()?;
                Some(format!(
                    "{}, {}, run {}: {error}",
                    found.experiment,
                    found.subject.name(),
                    found.run
                ))
            })
            .collect()
    }

    /// Every measurement, with all that the load generator wrote.
    pub fn to_json(&self) -> Value {
        let measurement = |found: &Measurement| {
            let mut value = json!({
                "row": found.experiment,
                "server": found.subject.name(),
                "run": found.run,
            });
            match &found.figure {
                Ok(figure) => {
                    value["value"] = json!(figure.value);
                    value["result"] = figure.raw.clone();
                }
                Err(error) => value["error"] = json!(error),
            }
            value
        };
        Value::Array(self.measurements.iter().map(measurement).collect())
    }
}

/// The cells of one row of [`Results::verdicts`].
fn verdict_cells(experiment: &Experiment, row: &Row, judgement: Option<&Judgement>) -> Vec<String> {
    let show = |value: f64| match row.divided_by {
        Some(_) => format!("{value:.2}x"),
        None => experiment.metric.show(value),
    };
    let number = |value: f64| match row.divided_by {
        Some(_) => format!("{value:.2}"),
        None => experiment.metric.number(value),
    };
    let target = match row.target {
        Target::AtMost(bound) => format!("at most {}", show(bound)),
        Target::AtLeast(bound) => format!("at least {}", show(bound)),
        Target::None => "-".to_owned(),
    };
    let (median, range, verdict) = match judgement {
        None => ("-".to_owned(), "-".to_owned(), "NOT MEASURED"),
        Some(judgement) => {
            let latency = judgement
                .p99_us
                .map(|p99| format!(", P99 {:.2} ms", p99 / 1e3))
                .unwrap_or_default();
            let (smallest, largest) = judgement.range;
            let verdict = match (row.target, judgement.met) {
                (Target::None, _) => "-",
                (_, true) => "met",
                (_, false) => "MISSED",
            };
            (
                show(judgement.median) + &latency,
                format!("{} - {}", number(smallest), number(largest)),
                verdict,
            )
        }
    };
    vec![
        experiment.id.into(),
        row.text.into(),
        target,
        median,
        range,
        verdict.into(),
    ]
}

/// The median; sorts the values. The mean of the middle two where their number is even; `None` where there is none.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::experiments::EXPERIMENTS;
    use super::*;

    /// The experiment that most tests use: fanout-1, whose first row demands Tidegate / bare loop of at most 1.15.
    fn experiment() -> &'static Experiment {
        &EXPERIMENTS[0]
    }

    /// Results of fanout-1: for each run the figures of Tidegate and of the bare loop.
    fn results(runs: &[(f64, f64)]) -> Results {
        let mut results = Results::default();
        for (number, &(tidegate, limit)) in runs.iter().enumerate() {
            for (subject, value) in [(Subject::Tidegate, tidegate), (Subject::Limit, limit)] {
                results.add(measurement(subject, number + 1, Ok(value)));
            }
        }
        results
    }

    fn measurement(subject: Subject, run: usize, value: Result<f64, String>) -> Measurement {
        let figure = value.map(|value| Figure {
            value,
            p99_us: None,
            deliveries_per_second: None,
            loader_cpu_share: None,
            faults: 0,
            raw: Value::Null,
        });
        Measurement {
            experiment: experiment().id,
            subject,
            run,
            figure,
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn ratios_are_taken_within_a_run_before_the_median() {
        // The machine is twice as slow in the second run; the ratio of medians would be 1.1 / 2 and so on.
        let results = results(&[(1.1, 1.0), (2.4, 2.0), (1.0, 1.0)]);
        let judgement = results.judge(experiment(), &experiment().rows[0]).unwrap();
        assert_eq!(judgement.median, 1.1);
        assert_eq!(judgement.range, (1.0, 1.2));
        assert!(judgement.met);
    }

    #[test]
    fn a_missed_target_is_shown_as_missed() {
        let (table, all_met) = results(&[(1.3, 1.0)]).verdicts(&[experiment()]);
        assert!(!all_met);
        assert!(table.render().contains("| MISSED "), "{}", table.render());
    }

    #[test]
    fn a_row_without_a_figure_is_not_met() {
        let mut results = results(&[]);
        results.add(measurement(Subject::Tidegate, 1, Err("it broke".into())));
        let (table, all_met) = results.verdicts(&[experiment()]);
        assert!(!all_met);
        assert!(table.render().contains("NOT MEASURED"));
        assert_eq!(results.failures(), ["fanout-1, tidegate, run 1: it broke"]);
    }

    #[test]
    fn a_run_in_which_one_of_two_failed_makes_no_ratio() {
        let mut results = results(&[(1.1, 1.0)]);
        results.add(measurement(Subject::Tidegate, 2, Ok(9.0)));
        assert_eq!(
            results.judge(experiment(), &experiment().rows[0]).unwrap().range,
            (1.1, 1.1)
        );
    }

    #[test]
    fn a_bound_on_latency_needs_a_latency() {
        let row = Row {
            p99_us_max: Some(6_000.0),
            ..experiment().rows[0]
        };
        let mut results = results(&[(0.4, 1.0)]);
        assert!(!results.judge(experiment(), &row).unwrap().met);
        for found in &mut results.measurements {
            found.figure.as_mut().unwrap().p99_us = Some(5_000.0);
        }
        assert!(results.judge(experiment(), &row).unwrap().met);
    }

    #[test]
    fn the_load_generators_result_is_read() {
        let text = r#"{"server_cpu_ns_per_delivery": 612.5, "latency_us": {"p50": 1, "p99": 250},
            "deliveries_per_s": 9, "loader_cpu_share": 0.8, "violations": {"lost": 1, "doubled": 2}, "failures": {"refused": 3},
            "series": [1, 2]}"#;
        let figure = Figure::parse(text, Metric::CpuPerDelivery).unwrap();
        assert_eq!(
            (figure.value, figure.p99_us, figure.faults),
            (612.5, Some(250.0), 6)
        );
    }

    #[test]
    fn a_result_without_the_metric_is_an_error() {
        assert!(Figure::parse("{}", Metric::CpuPerDelivery).is_err());
        assert!(Figure::parse(r#"{"server_cpu_ns_per_delivery": null}"#, Metric::CpuPerDelivery).is_err());
        assert!(Figure::parse("no", Metric::CpuShare).is_err());
    }
}

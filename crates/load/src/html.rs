//! The report as one page that needs no network.

use crate::report::Report;

/// The page, whose script draws the data that is put in the place of [`DATA`] and [`ROWS`].
const PAGE: &str = include_str!("report.html");
const DATA: &str = "/*DATA*/null";
const ROWS: &str = "/*ROWS*/null";

impl Report {
    /// The page for people: figures and plots, light and dark, in one file.
    pub fn to_html(&self) -> String {
        PAGE.replace(DATA, &script(self))
            .replace(ROWS, &script(&self.rows()))
    }
}

/// JSON that may stand inside a `<script>` element: nothing in it can end the element.
fn script(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value)
        .expect("a report has string keys and finite numbers only")
        .replace('<', "\\u003c")
}

//! Tables of text that are Markdown as well: one form for the terminal and for the pages that are kept.

/// A table: a heading, then rows of as many cells.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column names and no rows.
    pub fn new<const COUNT: usize>(heading: [&str; COUNT]) -> Table {
        Table {
            rows: vec![heading.map(str::to_owned).to_vec()],
        }
    }

    /// Adds a row; it must have as many cells as the heading.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(
            cells.len(),
            self.rows[0].len(),
            "a row has as many cells as the heading"
        );
        self.rows.push(cells);
    }

    /// The table as Markdown, columns aligned for reading as plain text.
    pub fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| {
                self.rows
                    .iter()
                    .map(|row| row[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, &width)| format!("{cell:<width$}"))
                .collect();
            text.push_str(&format!("| {} |\n", cells.join(" | ")));
            if number == 0 {
                let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
                text.push_str(&format!("|{}|\n", rules.join("|")));
            }
        }
        text
    }
}

/// Seconds as people read them: `8.4 s`, `2 min 05 s`.
pub fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let minutes = (seconds / 60.0).floor();
    format!("{minutes} min {:02.0} s", (seconds - minutes * 60.0).floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["step", "s"]);
        table.row(vec!["clippy".into(), "12".into()]);
        assert_eq!(
            table.render(),
            "| step   | s  |\n|--------|----|\n| clippy | 12 |\n"
        );
    }

    #[test]
    fn durations_past_a_minute_name_it() {
        assert_eq!(duration(8.44), "8.4 s");
        assert_eq!(duration(125.9), "2 min 05 s");
    }
}

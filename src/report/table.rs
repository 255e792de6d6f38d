//! Tables that look the same on every page and can be taken away as CSV or Markdown.

use super::{csv::text_field, format::MISSING};

/// Rows of cells under named columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// What each column holds.
    pub(super) columns: Vec<Column>,
    /// As many cells a row as there are columns.
    pub(super) rows: Vec<Vec<Cell>>,
}

/// Heading of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    /// For people.
    pub name: String,
    /// For programs; the unit is part of it.
    pub key: String,
    /// What the figure means, in a sentence.
    pub hint: String,
    /// The cells are numbers (right-aligned, sorted as numbers).
    pub numeric: bool,
    /// For programs only: another column shows it to people.
    pub hidden: bool,
}

/// One figure or name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cell {
    /// What is shown.
    pub text: String,
    /// What qualifies it: an interval, a unit, a condition.
    pub note: String,
    /// The exact value of a number.
    pub value: Option<f64>,
    /// Whether it is good or bad news.
    pub tone: Tone,
}

/// Emphasis of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    /// Neither.
    #[default]
    Plain,
    /// Good news.
    Good,
    /// Bad news.
    Bad,
    /// Beside the point.
    Dim,
}

impl Tone {
    /// What an SQNR in decibels says: below 10 dB noise is a third of the signal, above 20 dB less than a tenth.
    pub fn of_sqnr(db: f64) -> Self {
        if db < 10.0 {
            Self::Bad
        } else if db < 20.0 {
            Self::Plain
        } else {
            Self::Good
        }
    }

    /// The class name in the style sheet.
    pub fn class(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Dim => "dim",
        }
    }
}

impl Column {
    /// A column of names.
    pub fn text(name: &str, key: &str) -> Self {
        Self { name: name.to_owned(), key: key.to_owned(), hint: String::new(), numeric: false, hidden: false }
    }

    /// A column of names that stands as a note in another one.
    pub fn hidden(name: &str, key: &str) -> Self {
        Self { hidden: true, ..Self::text(name, key) }
    }

    /// A column of numbers.
    pub fn number(name: &str, key: &str, hint: &str) -> Self {
        Self { name: name.to_owned(), key: key.to_owned(), hint: hint.to_owned(), numeric: true, hidden: false }
    }
}

impl Cell {
    /// A name.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A number, shown as `text`.
    pub fn number(value: f64, text: impl Into<String>) -> Self {
        Self { text: text.into(), value: Some(value), ..Self::default() }
    }

    /// What stands where nothing was measured.
    pub fn missing() -> Self {
        Self { text: MISSING.to_owned(), tone: Tone::Dim, ..Self::default() }
    }

    /// Adds what qualifies the figure.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Sets the emphasis.
    pub fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    /// True when the text is `text`.
    pub fn shows(&self, text: &str) -> bool {
        self.text == text
    }

    /// The value to sort by, as JavaScript reads it; empty without one.
    pub fn sort_key(&self) -> String {
        match self.value {
            Some(value) if value.is_infinite() => if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
            Some(value) => value.to_string(),
            None => String::new(),
        }
    }
}

impl Table {
    /// The node of the network that a row is about.
    pub(super) fn node_of<'a>(&self, row: &'a [Cell]) -> Option<&'a str> {
        let at = self.columns.iter().position(|column| column.key == "node")?;
        row.get(at).map(|cell| cell.text.as_str())
    }

    /// Drops the columns of numbers that have none.
    pub(super) fn drop_empty_columns(&mut self) {
        for i in (0..self.columns.len()).rev() {
            if self.columns[i].numeric && self.rows.iter().all(|row| row[i].value.is_none() && row[i].shows(MISSING)) {
                self.columns.remove(i);
                for row in &mut self.rows {
                    row.remove(i);
                }
            }
        }
    }

    /// The exact values as CSV, with the columns' keys as its first line.
    pub fn csv(&self) -> csv::Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(self.columns.iter().map(|column| &column.key))?;
        for row in &self.rows {
            writer.write_record(self.columns.iter().zip(row).map(|(column, cell)| match cell.value {
                Some(value) => value.to_string(),
                None if column.numeric => String::new(),
                None => text_field(&cell.text),
            }))?;
        }
        let bytes = writer.into_inner().map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The table as it is shown, as Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let shown = || self.columns.iter().filter(|column| !column.hidden);
        let mut text = line(shown().map(|column| markdown_text(&column.name)).collect());
        text += &line(shown().map(|c| if c.numeric { "---:" } else { "---" }.to_owned()).collect());
        for row in &self.rows {
            let cell = |cell: &Cell| {
                if cell.note.is_empty() {
                    markdown_text(&cell.text)
                } else {
                    format!("{} <sub>{}</sub>", markdown_text(&cell.text), markdown_text(&cell.note))
                }
            };
            text += &line(self.columns.iter().zip(row).filter(|(c, _)| !c.hidden).map(|(_, c)| cell(c)).collect());
        }
        text
    }
}

/// Text that Markdown shows as it is, on one line.
pub(super) fn markdown_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '&' => escaped += "&amp;",
            // An entity cannot become a mention of a person, the bare sign can.
            '@' => escaped += "&#64;",
            '\\' | '|' | '*' | '_' | '[' | ']' | '`' | '~' | '#' | '!' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            columns: vec![Column::text("Model", "model"), Column::number("Latency", "latency_ms", "")],
            rows: vec![
                vec![Cell::text("a|b\n<script>, \"x\""), Cell::number(1.25, "1.3 ms").note("p99 2 ms")],
                vec![Cell::text("c"), Cell::missing()],
            ],
        }
    }

    #[test]
    fn csv_has_exact_values_and_names() {
        assert_eq!(table().csv().unwrap(), "model,latency_ms\n\"a|b\n<script>, \"\"x\"\"\",1.25\nc,\n");
    }

    #[test]
    fn markdown_keeps_its_columns_whatever_the_names_hold() {
        let expected = "| Model | Latency |\n| --- | ---: |\n\
            | a\\|b &lt;script&gt;, \"x\" | 1.3 ms <sub>p99 2 ms</sub> |\n| c | – |\n";
        assert_eq!(table().markdown(), expected);
    }
}

//! How commands print: a table for people or JSON for programs.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::CliError;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: snake_case, RFC 3339 UTC.
    Json,
}

/// Where a command's result goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) const fn new(format: Format) -> Self {
        Self { format }
    }

    /// Prints `value` as JSON, or the text that `people` makes of it.
    pub(super) fn show<T: Serialize>(
        self,
        value: &T,
        people: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        match self.format {
            Format::Json => line(&serde_json::to_string(value).map_err(CliError::failed)?),
            Format::Table => line(people(value).trim_end()),
        }
        Ok(())
    }
}

/// Prints a line; a reader that is gone (`| head`) is no error.
pub(super) fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints an error as one line.
pub(super) fn complain(text: &str) {
    let words: Vec<_> = text.split_whitespace().collect();
    let _ = writeln!(
        std::io::stderr(),
        "rollcall: {}",
        printable(&words.join(" "))
    );
}

/// Text without what could disturb a terminal: some of it comes from nodes.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// Rows under a header.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.map(str::to_uppercase));
    for row in rows {
        table.add_row(row.map(|cell| printable(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(&table.to_string())
}

/// Names and values, one pair a line.
pub(super) fn fields<const N: usize>(pairs: [(&str, String); N]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:width$}  {}\n", printable(&value)))
        .collect()
}

fn trimmed(text: &str) -> String {
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// A value, or a dash where there is none.
pub(super) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Things in a row, or a dash where there are none.
pub(super) fn joined<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    let things: Vec<_> = things.into_iter().map(|thing| thing.to_string()).collect();
    if things.is_empty() {
        "-".to_owned()
    } else {
        things.join(", ")
    }
}

/// Milliseconds for people.
pub(super) fn ms(value: Option<f64>) -> String {
    or_dash(value.map(|ms| format!("{ms:.1} ms")))
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// A bar on a terminal; nothing in a pipe.
pub(super) fn upload_bar(total: u64) -> ProgressBar {
    bar(
        total,
        "{msg:20} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
    )
}

/// A count on a terminal; nothing in a pipe.
pub(super) fn count_bar(total: u64) -> ProgressBar {
    bar(total, "{msg} {bar:30} {pos}/{len}")
}

fn bar(total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_carries_no_escapes() {
        let table = table(
            ["node", "state"],
            [
                ["n-1".to_owned(), "ok".to_owned()],
                ["node-22".to_owned(), "a\x1b[31m".to_owned()],
            ],
        );
        assert_eq!(
            table,
            "NODE     STATE\nn-1      ok\nnode-22  a\u{fffd}[31m\n"
        );
    }
}

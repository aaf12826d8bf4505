//! `rollcall label`: what the right answers were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use rollcall_shared::feedback::FeedbackItem;
use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::FEEDBACK_ITEMS_MAX;

use super::CliError;
use super::client::Client;
use super::output::{Output, joined};
use crate::http::outcomes::{FeedbackBody, FeedbackSent};

/// Bytes of a file's items in one request, about; the coordinator takes 1 MiB of JSON.
const BATCH_BYTES: usize = 400 << 10;

/// Labels and outcomes of requests.
#[derive(Debug, Subcommand)]
pub(super) enum Label {
    /// Send labels to the nodes that answered. They remember some 65,000 answers each: labels
    /// that come later are counted by nobody.
    ///
    /// CSV with a header: `id`, and any of `label`, `row` (which row of an answer of several,
    /// from 0) and outcomes by name; empty cells say nothing. Or JSON lines:
    /// {"id": "order-7", "label": 3, "kpis": {"spend": 12.5}}.
    Push {
        /// The file.
        file: PathBuf,
        /// The model that answered.
        #[arg(long)]
        model: ModelName,
    },
}

impl Label {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let Self::Push { file, model } = self;
        let items = read(&file)?;
        if items.is_empty() {
            return Err(CliError::Failed(format!(
                "{} holds no labels",
                file.display()
            )));
        }
        let mut sent = FeedbackSent::default();
        for items in batches(items) {
            let body = FeedbackBody { items };
            let one: FeedbackSent = client
                .post(&format!("/models/{model}/feedback"), &body)
                .await?;
            let items = sent.items + one.items;
            // Nodes come and go between batches: the last one's stand for all.
            sent = FeedbackSent { items, ..one };
        }
        if sent.nodes == 0 {
            return Err(CliError::Failed(format!(
                "no connected node that hosts {model} can take labels: {}",
                too_old(&sent)
            )));
        }
        output.show(&sent, |sent| {
            let note = if sent.too_old > 0 { "\n" } else { "" };
            let old = if sent.too_old > 0 {
                too_old(sent)
            } else {
                String::new()
            };
            format!(
                "Sent {} items to {} nodes.{note}{old}",
                sent.items, sent.nodes
            )
        })
    }
}

fn too_old(sent: &FeedbackSent) -> String {
    format!(
        "{} of an older release were left out: {}",
        sent.too_old,
        joined(&sent.too_old_nodes)
    )
}

fn batches(items: Vec<FeedbackItem>) -> Vec<Vec<FeedbackItem>> {
    let mut batches: Vec<Vec<FeedbackItem>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = serde_json::to_vec(&item).map_or(BATCH_BYTES, |json| json.len() + 1);
        bytes += more;
        match batches.last_mut() {
            Some(batch) if bytes <= BATCH_BYTES && batch.len() < FEEDBACK_ITEMS_MAX => {
                batch.push(item);
            }
            Some(_) | None => {
                bytes = more;
                batches.push(vec![item]);
            }
        }
    }
    batches
}

/// All items of a file, each checked: a mistake in the last line must not come to light
/// when the others are sent.
fn read(file: &Path) -> Result<Vec<FeedbackItem>, CliError> {
    let failed = |why: String| CliError::Failed(format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let items = if text.trim_start().starts_with('{') {
        from_json_lines(&text)
    } else {
        from_csv(&text)
    };
    items.map_err(failed)
}

fn from_json_lines(text: &str) -> Result<Vec<FeedbackItem>, String> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let item = serde_json::from_str::<FeedbackItem>(line);
            let item = item.map_err(|error| error.to_string());
            item.and_then(|item| item.check().map(|()| item))
                .map_err(|why| format!("line {}: {why}", index + 1))
        })
        .collect()
}

fn from_csv(text: &str) -> Result<Vec<FeedbackItem>, String> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    if !header.iter().any(|name| name == "id") {
        return Err(
            "the first line must name the columns: id, and any of label, row and outcomes"
                .to_owned(),
        );
    }
    reader
        .records()
        .map(|record| {
            let record = record.map_err(|error| error.to_string())?;
            let line = record.position().map_or(0, csv::Position::line);
            let item = from_cells(header.iter().zip(&record));
            item.and_then(|item| item.check().map(|()| item))
                .map_err(|why| format!("line {line}: {why}"))
        })
        .collect()
}

fn from_cells<'a>(cells: impl Iterator<Item = (&'a str, &'a str)>) -> Result<FeedbackItem, String> {
    let mut item = FeedbackItem {
        id: String::new(),
        row: None,
        label: None,
        kpis: BTreeMap::new(),
    };
    for (column, cell) in cells.filter(|(_, cell)| !cell.is_empty()) {
        match column {
            "id" => cell.clone_into(&mut item.id),
            "label" => item.label = Some(cell.to_owned()),
            "row" => {
                let row = cell.parse();
                item.row = Some(row.map_err(|_| format!("{cell:?} is not a row: 0, 1, ..."))?);
            }
            kpi => {
                let value = cell.parse();
                let value = value.map_err(|_| format!("{kpi} is {cell:?}, which is no number"))?;
                item.kpis.insert(kpi.to_owned(), value);
            }
        }
    }
    Ok(item)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_and_json_lines_say_the_same() {
        let csv = "id,label,spend,row\norder-7, 3 ,12.5,\norder-8,,2,1\n\"order,9\",spam,,\n";
        let json = r#"{"id": "order-7", "label": 3, "kpis": {"spend": 12.5}}

{"id": "order-8", "row": 1, "kpis": {"spend": 2}}
{"id": "order,9", "label": "spam"}
"#;
        let items = from_csv(csv).unwrap();
        assert_eq!(items, from_json_lines(json).unwrap());
        assert_eq!(items.len(), 3);
        assert_eq!(items[0].label.as_deref(), Some("3"));
        assert_eq!(items[1].row, Some(1));
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (csv, says) in [
            ("order-7,3\n", "must name the columns"),
            (
                "id,label\na,1\nb,\n",
                "line 3: the item of id \"b\" says nothing",
            ),
            ("id,spend\na,much\n", "line 2: spend is \"much\""),
            ("id,label,row\na,1,first\n", "is not a row"),
            ("id,label\n,1\n", "\"id\" is the id of a request"),
            ("id,label\na,1,2\n", "line: 2"),
        ] {
            let why = from_csv(csv).unwrap_err();
            assert!(why.contains(says), "{csv:?}: {why}");
        }
        let why = from_json_lines("{\"id\": \"a\", \"label\": 1}\n{\"id\": 7}\n").unwrap_err();
        assert!(why.starts_with("line 2: "), "{why}");
    }

    #[test]
    fn batches_have_a_bound_and_lose_nothing() {
        let item = |id: usize, long: usize| FeedbackItem {
            id: format!("{id:0long$}"),
            row: None,
            label: Some("1".to_owned()),
            kpis: BTreeMap::new(),
        };
        let short: Vec<_> = (0..FEEDBACK_ITEMS_MAX + 1).map(|id| item(id, 4)).collect();
        let lengths: Vec<_> = batches(short.clone()).iter().map(Vec::len).collect();
        assert_eq!(lengths, [FEEDBACK_ITEMS_MAX, 1]);
        let long: Vec<_> = (0..1_000).map(|id| item(id, 1_000)).collect();
        let parts = batches(long.clone());
        assert!(parts.len() > 1);
        assert_eq!(parts.concat(), long);
    }
}

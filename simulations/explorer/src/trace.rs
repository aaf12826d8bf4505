//! One line an event, and a hash over all of them: two runs of a seed are the same
//! run exactly when their hashes are equal.

use std::fmt;

use rollcall_shared::digest::Digest;
use rollcall_shared::time::Timestamp;

/// Names that say nothing, and what stands for them.
const SHORT: &[(&str, &str)] = &[
    ("VersionRef { version: ", "("),
    ("Version { major: ", ""),
    (", minor: ", "."),
    (", patch: ", "."),
    (" }, digest: Digest(", " "),
    (") }", ")"),
    ("ModelName(", ""),
    ("Generation(", "(g"),
    ("RolloutId(", "(r-"),
    ("NodeId(", ""),
    (
        ", roles: {Viewer, Operator, Promoter, Admin, Approver(\"ml-engineering\")}",
        "",
    ),
];

fn shortened(text: &str) -> String {
    SHORT.iter().fold(text.to_owned(), |text, (long, short)| {
        text.replace(long, short)
    })
}

/// Lines, kept or only not written at all: formatting costs more than simulating.
#[derive(Debug, Default)]
pub struct Trace {
    kept: Option<Vec<String>>,
    start: Timestamp,
}

impl Trace {
    /// A trace that keeps its lines, or one that costs nothing.
    #[must_use]
    pub fn new(keep: bool, start: Timestamp) -> Self {
        Self {
            kept: keep.then(Vec::new),
            start,
        }
    }

    /// Adds a line. `what` is formatted only when lines are kept.
    pub fn line(&mut self, now: Timestamp, who: impl fmt::Display, what: fmt::Arguments<'_>) {
        if let Some(lines) = &mut self.kept {
            let at = now.since(self.start).as_secs_f64();
            lines.push(format!(
                "{at:12.6} {who:<12} {}",
                shortened(&what.to_string())
            ));
        }
    }

    /// The lines; empty when they were not kept.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        self.kept.as_deref().unwrap_or_default()
    }

    /// Hash of all lines.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of(self.lines().join("\n").as_bytes())
    }
}

//! Two versions side by side: what differs, and by how much.

use std::collections::BTreeSet;

use rollcall_coordinator_core::view::VersionView;
use rollcall_shared::manifest::{Metadata, TensorSpec};
use serde::Serialize;

use super::model::stage_name;
use super::output::{bytes, joined, or_dash, table};

/// One line of a version's story.
type Story = (&'static str, fn(&Metadata) -> &Option<String>);

/// Two versions.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    pub(super) left: VersionView,
    pub(super) right: VersionView,
}

pub(super) fn text(pair: &Comparison) -> String {
    let Comparison { left, right } = pair;
    let mut rows = vec![
        row("stage", left, right, |v| stage_name(v.stage).to_owned()),
        row("registered", left, right, |v| v.registered_at.to_string()),
        row("size", left, right, |v| bytes(v.bytes)),
        row("inputs", left, right, |v| {
            joined(v.signature.inputs.iter().map(tensor))
        }),
        row("outputs", left, right, |v| {
            joined(v.signature.outputs.iter().map(tensor))
        }),
    ];
    let stories: [Story; 6] = [
        ("algorithm", |m| &m.algorithm),
        ("training data", |m| &m.training_data_version),
        ("features", |m| &m.feature_version),
        ("owner", |m| &m.owner),
        ("commit", |m| &m.git_commit),
        ("changes", |m| &m.expected_changes),
    ];
    for (name, story) in stories {
        rows.push(row(name, left, right, |v| {
            or_dash(story(&v.metadata).as_ref())
        }));
    }
    let metrics = [left, right]
        .into_iter()
        .flat_map(|version| version.metadata.metrics.keys());
    for name in metrics.collect::<BTreeSet<_>>() {
        let value = |version: &VersionView| version.metadata.metrics.get(name).copied();
        let change = match (value(left), value(right)) {
            (Some(before), Some(after)) => format!("{:+.6}", after - before),
            (Some(_) | None, _) => String::new(),
        };
        let [name, before, after, _] = row(name, left, right, |version| or_dash(value(version)));
        rows.push([name, before, after, change]);
    }
    let heads = [left, right].map(|version| format!("{}@{}", version.model, version.version));
    table(["", &heads[0], &heads[1], ""], rows)
}

fn row(
    name: &str,
    left: &VersionView,
    right: &VersionView,
    value: impl Fn(&VersionView) -> String,
) -> [String; 4] {
    let (left, right) = (value(left), value(right));
    let mark = if left == right { "" } else { "differs" };
    [name.to_owned(), left, right, mark.to_owned()]
}

/// E.g. `input FP32[-1,64]`.
pub(super) fn tensor(spec: &TensorSpec) -> String {
    let shape: Vec<_> = spec.shape.iter().map(ToString::to_string).collect();
    format!("{} {}[{}]", spec.name, spec.datatype, shape.join(","))
}

//! Feedback meets the answers that it is about.
//!
//! A label is counted for the version that answered, and for the shadow that saw the same
//! request: the right class judges both. An outcome that is a number (money spent, minutes
//! watched) followed from the answer that the client got, so it counts for that alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rollcall_shared::feedback::{Feedback, FeedbackItem};
use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::{FEEDBACK_ITEMS_MAX, KPIS_MAX};
use serde::Serialize;

use super::answers::{Answer, Judged};
use super::names::ClassName;
use super::{Recorder, row_key};

/// What became of the items of a list. An item with a label and outcomes can be in several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Joined {
    /// Items of which something was counted.
    pub joined: u64,
    /// Items whose id (or row) is not remembered here: of another node, too old, or wrong.
    pub unknown: u64,
    /// Labels and outcomes that this answer had already.
    pub duplicate: u64,
    /// Labels and outcomes that cannot be counted.
    pub refused: u64,
    /// Why the first of them cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_refused: Option<String>,
}

/// The same since the process began.
#[derive(Debug, Default)]
pub(super) struct JoinedTotals {
    joined: AtomicU64,
    unknown: AtomicU64,
    duplicate: AtomicU64,
    refused: AtomicU64,
}

impl JoinedTotals {
    fn add(&self, joined: &Joined) {
        for (total, more) in [
            (&self.joined, joined.joined),
            (&self.unknown, joined.unknown),
            (&self.duplicate, joined.duplicate),
            (&self.refused, joined.refused),
        ] {
            total.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> Joined {
        let read = |total: &AtomicU64| total.load(Ordering::Relaxed);
        Joined {
            joined: read(&self.joined),
            unknown: read(&self.unknown),
            duplicate: read(&self.duplicate),
            refused: read(&self.refused),
            why_refused: None,
        }
    }
}

impl Joined {
    fn refuse(&mut self, why: impl FnOnce() -> String) {
        self.refused += 1;
        self.why_refused.get_or_insert_with(why);
    }
}

impl Recorder {
    /// Counts what the coordinator hands on to every node: most of it is about answers of
    /// others. An item that breaks a bound is not counted.
    pub fn take_feedback(&self, feedback: &Feedback) {
        let good = |item: &&FeedbackItem| item.check().is_ok();
        let items = feedback.items.iter().take(FEEDBACK_ITEMS_MAX).filter(good);
        let joined = self.join(Some(&feedback.model), items);
        tracing::debug!(model = %feedback.model, ?joined, "feedback from the coordinator");
    }

    /// Counts feedback for the versions that answered. `model`: only about answers of this one.
    pub fn join<'a>(
        &self,
        model: Option<&ModelName>,
        items: impl IntoIterator<Item = &'a FeedbackItem>,
    ) -> Joined {
        let mut joined = Joined::default();
        for item in items {
            let id = self.hash(&item.id);
            let keys = match item.row {
                None => [Some(id), None],
                Some(0) => [Some(row_key(id, 0)), Some(id)],
                Some(row) => [Some(row_key(id, row.into())), None],
            };
            let is_meant =
                |answer: &Answer| model.is_none_or(|model| answer.given.series.model == *model);
            let found = keys.into_iter().flatten().find_map(|key| {
                let note =
                    |answer: &mut Answer| is_meant(answer).then(|| note(answer, item, &mut joined));
                self.answers.find(key, note).flatten()
            });
            match found {
                None => joined.unknown += 1,
                Some(counted) => joined.joined += u64::from(counted),
            }
        }
        self.feedback.add(&joined);
        joined
    }
}

/// Counts an item for its answer; whether anything of it could be.
fn note(answer: &mut Answer, item: &FeedbackItem, joined: &mut Joined) -> bool {
    let mut counted = false;
    match (&item.label, &answer.label) {
        (None, _) => {}
        (Some(_), Some(_)) => joined.duplicate += 1,
        (Some(label), None) if answer.given.class.is_some() => {
            let label = ClassName::of_label(label);
            answer.given.label(answer.segment.as_ref(), &label);
            if let Some(shadow) = &answer.shadow {
                shadow.label(answer.segment.as_ref(), &label);
            }
            answer.label = Some(label);
            counted = true;
        }
        (Some(_), None) => joined.refuse(|| {
            format!(
                "the answer to {:?} names no class that a label could be compared with: give \
                 outcomes as \"kpis\"",
                item.id
            )
        }),
    }
    for (name, value) in &item.kpis {
        let series = &answer.given.series;
        let Some(number) = series.names.kpi(name) else {
            joined.refuse(|| {
                format!(
                    "there is no room for the KPI {name:?}: a model has at most {KPIS_MAX} until \
                     the agent starts anew"
                )
            });
            continue;
        };
        let bit = 1 << number;
        if answer.kpis & bit == 0 {
            answer.kpis |= bit;
            series.count(answer.segment.as_ref(), |tally| tally.kpi(name, *value));
            counted = true;
        } else {
            joined.duplicate += 1;
        }
    }
    counted
}

impl Judged {
    /// Counts a label for the version that said this.
    pub(super) fn label(&self, segment: Option<&Arc<str>>, label: &ClassName) {
        let Some(class) = &self.class else { return };
        let label = label.beside(class);
        let names = &self.series.names;
        self.series.count(segment, |tally| {
            tally.label(&label, class, self.confidence, names);
        });
    }
}

const _: () = assert!(KPIS_MAX <= u16::BITS as usize);

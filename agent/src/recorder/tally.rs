//! Counts of one series, or of one segment of it, while they grow.
//!
//! Rows are counted by place where that can be (scores, classes that are small numbers,
//! input bins), so that one costs a few nanoseconds; names come when a window is taken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rollcall_agent_core::answer::{Class, Row};
use rollcall_shared::limits::CLASSES_MAX;
use rollcall_shared::report::{CALIBRATION_BINS, OTHER_SEGMENT, SCORE_BINS};

use super::names::{ClassName, ModelNames};
use super::{Failure, Total};

/// Where classes beyond the bound are counted.
const OTHER_CLASS: &str = OTHER_SEGMENT;

/// Counts of a series and of its segments.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    pub(super) whole: Tally,
    /// Input bins of all features, one after another. Of the whole only: what came in is
    /// compared with training, not between segments.
    pub(super) features: Vec<u64>,
    pub(super) segments: BTreeMap<Arc<str>, Box<Tally>>,
}

impl Tallies {
    /// Counts something for the whole and for the segment, if there is one.
    pub(super) fn count(&mut self, segment: Option<&Arc<str>>, mut with: impl FnMut(&mut Tally)) {
        with(&mut self.whole);
        if let Some(segment) = segment {
            match self.segments.get_mut(segment) {
                Some(tally) => with(tally),
                None => with(self.segments.entry(Arc::clone(segment)).or_default()),
            }
        }
    }
}

/// Counts that grow.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    total: Total,
    /// Rows that named class 0, 1, ...
    by_index: Vec<u64>,
    /// Rows that named another number.
    by_number: BTreeMap<i64, u64>,
    /// Rows that named a class beyond the bound.
    other: u64,
}

impl Tally {
    pub(super) fn answered(&mut self, latency: Duration) {
        self.total.counts.requests += 1;
        self.total.counts.latency.record(latency);
        self.total.latency_sum += latency;
    }

    pub(super) fn failed(&mut self, failure: Failure, fallback: bool, first_of_key: bool) {
        let counts = &mut self.total.counts;
        counts.requests += 1;
        match failure {
            Failure::Failed => counts.errors += 1,
            Failure::TimedOut => counts.timeouts += 1,
        }
        counts.fallbacks += u64::from(fallback);
        counts.failed_keys += u64::from(first_of_key);
    }

    pub(super) fn pair(&mut self, agreed: bool) {
        self.total.counts.compared += 1;
        self.total.counts.agreed += u64::from(agreed);
    }

    pub(super) fn shed(&mut self) {
        self.total.counts.shed += 1;
    }

    pub(super) fn row(&mut self, row: &Row<'_>, names: &ModelNames) {
        let quality = &mut self.total.counts.quality;
        if let Some(confidence) = row.confidence {
            at(
                &mut quality.scores,
                share_bin(confidence, SCORE_BINS),
                SCORE_BINS,
            );
        }
        match row.class {
            None => {}
            Some(Class::Number(number)) => match usize::try_from(number) {
                Ok(index) if index < CLASSES_MAX => at(&mut self.by_index, index, index + 1),
                Ok(_) | Err(_) => self.other_number(number, names),
            },
            Some(class @ Class::Text(text)) => {
                if let Some(count) = quality.named.get_mut(text) {
                    *count += 1;
                } else if quality.named.len() < CLASSES_MAX && names.counts(class) {
                    quality.named.insert(text.to_owned(), 1);
                } else {
                    self.other += 1;
                }
            }
        }
    }

    fn other_number(&mut self, number: i64, names: &ModelNames) {
        if let Some(count) = self.by_number.get_mut(&number) {
            *count += 1;
        } else if self.by_number.len() < CLASSES_MAX && names.counts(Class::Number(number)) {
            self.by_number.insert(number, 1);
        } else {
            self.other += 1;
        }
    }

    /// Counts a label of an answer that named `answered`.
    pub(super) fn label(
        &mut self,
        label: &ClassName,
        answered: &ClassName,
        confidence: Option<f32>,
        names: &ModelNames,
    ) {
        let quality = &mut self.total.counts.quality;
        let correct = label == answered;
        let labelled = &mut quality.labelled;
        let counts = |text: &str| names.counts(Class::of_text(text));
        named_by(labelled, &answered.text(), counts).predicted += 1;
        let actual = named_by(labelled, &label.text(), counts);
        actual.actual += 1;
        actual.correct += u64::from(correct);
        if let Some(confidence) = confidence {
            let bins = &mut quality.calibration;
            bins.resize(CALIBRATION_BINS, Default::default());
            if let Some(bin) = bins.get_mut(share_bin(confidence, CALIBRATION_BINS)) {
                bin.count += 1;
                bin.confidence += f64::from(confidence);
                bin.correct += u64::from(correct);
            }
        }
    }

    /// Counts an outcome. The name is one of the model's few.
    pub(super) fn kpi(&mut self, name: &str, value: f64) {
        let kpis = &mut self.total.counts.quality.kpis;
        match kpis.get_mut(name) {
            Some(moments) => moments.record(value),
            None => kpis.entry(name.to_owned()).or_default().record(value),
        }
    }

    /// Everything, by name.
    pub(super) fn into_total(mut self) -> Total {
        let named = &mut self.total.counts.quality.named;
        let indexes = self.by_index.iter().enumerate();
        let indexed = indexes.map(|(index, count)| (index.to_string(), *count));
        let numbers = self.by_number.iter();
        let numbered = numbers.map(|(number, count)| (number.to_string(), *count));
        for (class, count) in indexed.chain(numbered).filter(|(_, count)| *count > 0) {
            *named_by(named, &class, |_| true) += count;
        }
        if self.other > 0 {
            *named.entry(OTHER_CLASS.to_owned()).or_default() += self.other;
        }
        self.total
    }
}

/// What counts for a class, or for `other` where there are too many. `counts`: whether a
/// class that is not there yet may be.
fn named_by<'a, T: Default>(
    classes: &'a mut BTreeMap<String, T>,
    class: &str,
    counts: impl FnOnce(&str) -> bool,
) -> &'a mut T {
    let known = classes.contains_key(class);
    let name = if known || (classes.len() < CLASSES_MAX && counts(class)) {
        class
    } else {
        OTHER_CLASS
    };
    classes.entry(name.to_owned()).or_default()
}

/// Adds one in a list that has at least `length` places from then on.
fn at(counts: &mut Vec<u64>, index: usize, length: usize) {
    if counts.len() < length {
        counts.resize(length, 0);
    }
    if let Some(count) = counts.get_mut(index) {
        *count += 1;
    }
}

/// The bin of a share (0 to 1) among `bins` of equal width; 1 is in the last.
fn share_bin(share: f32, bins: usize) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "shares are 0 to 1, and bins a few"
    )]
    let bin = (share * bins as f32) as usize;
    bin.min(bins - 1)
}

//! How right a version is, once labels have come in.
//!
//! Accuracy over all labelled answers; precision, recall and F1 as the mean over classes, each
//! class with the same weight (macro), so that a rare class that is never found shows. Macro F1 is
//! the mean of the F1s of the classes, not the F1 of the means; a class that was never named has
//! precision 0, one that never occurred has recall 0; classes are those named or occurring. That
//! is how scikit-learn counts by default (`zero_division=0`).
//!
//! These are estimates, without a bound on their error; whether one proportion (accuracy) is above
//! a limit at any look, [`super::agreement`] tells. Labels that arrive only for some kinds of
//! answers (loans granted, not those refused) make all of them wrong, and no formula sees it.

use std::collections::BTreeMap;

use rollcall_shared::report::ClassCounts;

use super::count;

/// How right a version is; every share 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rightness {
    /// Labelled answers.
    pub labels: u64,
    /// Of these, how many were right.
    pub correct: u64,
    /// Mean over classes: of the answers that name it, the share that is right.
    pub precision: f64,
    /// Mean over classes: of the answers with its label, the share that names it.
    pub recall: f64,
    /// Mean over classes of the harmonic mean of both.
    pub f1: f64,
}

impl Rightness {
    /// From counts by class. `None` without labels.
    #[must_use]
    pub fn of(classes: &BTreeMap<String, ClassCounts>) -> Option<Self> {
        let labels: u64 = classes.values().map(|class| class.actual).sum();
        let correct = classes.values().map(|class| class.correct).sum();
        let seen = classes
            .values()
            .filter(|class| class.predicted + class.actual > 0);
        let mean = |share: fn(&ClassCounts) -> f64| {
            #[expect(clippy::cast_precision_loss, reason = "few classes")]
            let classes = seen.clone().count() as f64;
            seen.clone().map(share).sum::<f64>() / classes
        };
        (labels > 0).then(|| Self {
            labels,
            correct,
            precision: mean(|class| share(class.correct, class.predicted)),
            recall: mean(|class| share(class.correct, class.actual)),
            f1: mean(|class| share(2 * class.correct, class.predicted + class.actual)),
        })
    }

    /// The share of labelled answers that is right.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        share(self.correct, self.labels)
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        count(part) / count(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(counts: &[(&str, u64, u64, u64)]) -> BTreeMap<String, ClassCounts> {
        let class = |&(name, predicted, actual, correct): &(&str, u64, u64, u64)| {
            let counts = ClassCounts {
                predicted,
                actual,
                correct,
            };
            (name.to_owned(), counts)
        };
        counts.iter().map(class).collect()
    }

    #[test]
    fn every_class_has_the_same_weight() {
        let rightness = Rightness::of(&classes(&[("common", 98, 90, 90), ("rare", 2, 10, 2)]));
        let rightness = rightness.unwrap();
        assert!((rightness.accuracy() - 0.92).abs() < 1e-12);
        assert!((rightness.recall - 0.6).abs() < 1e-12);
        assert!((rightness.precision - (90.0 / 98.0 + 1.0) / 2.0).abs() < 1e-12);
        assert!((rightness.f1 - (180.0 / 188.0 + 4.0 / 12.0) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn classes_that_are_never_named_or_never_occur_count_as_nothing_right() {
        assert_eq!(Rightness::of(&classes(&[])), None);
        assert_eq!(Rightness::of(&classes(&[("ghost", 0, 0, 0)])), None);
        let counts = [
            ("ghost", 0, 0, 0),
            ("never named", 0, 5, 0),
            ("never there", 5, 0, 0),
        ];
        let rightness = Rightness::of(&classes(&counts)).unwrap();
        assert_eq!((rightness.labels, rightness.correct), (5, 0));
        assert!(rightness.f1.abs() + rightness.precision + rightness.recall < 1e-12);
    }
}

//! What answers were like, as far as that can be counted: how sure the model was, which
//! classes it named, and, once labels and outcomes come in, how right it was.
//!
//! Everything adds up over windows and nodes. What a model or its clients do not give stays
//! empty and costs a few bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bins of equal width from 0 to 1 for the highest score of an answer.
pub const SCORE_BINS: usize = 20;

/// Bins of equal width from 0 to 1 for the confidence of labelled answers.
pub const CALIBRATION_BINS: usize = 15;

/// Answers of one series, or one segment of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// The highest score of each row answered, in [`SCORE_BINS`] bins; empty: no scores.
    pub scores: Vec<u64>,
    /// Rows answered, by the class named; at most [`crate::limits::CLASSES_MAX`] and `other`.
    pub named: BTreeMap<String, u64>,
    /// Labelled answers, by class. Their sums are the number of labels.
    pub labelled: BTreeMap<String, ClassCounts>,
    /// Labelled answers by confidence, [`CALIBRATION_BINS`] bins; empty: no labels or no scores.
    pub calibration: Vec<CalibrationBin>,
    /// Outcomes that are numbers, by name; at most [`crate::limits::KPIS_MAX`].
    pub kpis: BTreeMap<String, Moments>,
    /// Inputs, by the feature that the manifest names, in the bins that it gives.
    pub features: BTreeMap<String, Vec<u64>>,
}

/// One class among labelled answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCounts {
    /// Answers that named it.
    pub predicted: u64,
    /// Labels that say it.
    pub actual: u64,
    /// Both.
    pub correct: u64,
}

/// Labelled answers of about the same confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// How many.
    pub count: u64,
    /// Sum of their confidences.
    pub confidence: f64,
    /// How many were right.
    pub correct: u64,
}

/// Numbers, as far as mean and variance need them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// Sum of their squares.
    pub squares: f64,
}

impl Quality {
    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        add(&mut self.scores, &other.scores);
        add_by_name(&mut self.named, &other.named, |a, b| *a += b);
        add_by_name(&mut self.labelled, &other.labelled, |a, b| {
            a.predicted += b.predicted;
            a.actual += b.actual;
            a.correct += b.correct;
        });
        lengthen(&mut self.calibration, other.calibration.len());
        for (mine, theirs) in self.calibration.iter_mut().zip(&other.calibration) {
            mine.count += theirs.count;
            mine.confidence += theirs.confidence;
            mine.correct += theirs.correct;
        }
        add_by_name(&mut self.kpis, &other.kpis, |a, b| a.merge(b));
        add_by_name(&mut self.features, &other.features, |a, b| add(a, b));
    }
}

impl Moments {
    /// Counts one number.
    pub fn record(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    /// Adds the numbers of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
    }
}

fn add(mine: &mut Vec<u64>, theirs: &[u64]) {
    lengthen(mine, theirs.len());
    for (mine, theirs) in mine.iter_mut().zip(theirs) {
        *mine += theirs;
    }
}

fn lengthen<T: Clone + Default>(list: &mut Vec<T>, length: usize) {
    if list.len() < length {
        list.resize(length, T::default());
    }
}

fn add_by_name<T: Clone + Default>(
    mine: &mut BTreeMap<String, T>,
    theirs: &BTreeMap<String, T>,
    add: impl Fn(&mut T, &T),
) {
    for (name, theirs) in theirs {
        if let Some(mine) = mine.get_mut(name) {
            add(mine, theirs);
        } else {
            mine.insert(name.clone(), theirs.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_adds_up_by_its_name() {
        let mut kpi = Moments::default();
        kpi.record(3.0);
        let one = Quality {
            scores: vec![1, 2],
            named: BTreeMap::from([("cat".to_owned(), 2)]),
            labelled: BTreeMap::from([(
                "cat".to_owned(),
                ClassCounts {
                    predicted: 2,
                    actual: 1,
                    correct: 1,
                },
            )]),
            calibration: vec![CalibrationBin {
                count: 2,
                confidence: 1.5,
                correct: 1,
            }],
            kpis: BTreeMap::from([("spend".to_owned(), kpi)]),
            features: BTreeMap::from([("age".to_owned(), vec![0, 1])]),
        };
        let mut sum = Quality::default();
        sum.merge(&one);
        assert_eq!(sum, one);
        sum.merge(&one);
        assert_eq!(sum.scores, [2, 4]);
        assert_eq!(sum.named["cat"], 4);
        assert_eq!(sum.labelled["cat"].correct, 2);
        assert_eq!(
            (sum.calibration[0].count, sum.calibration[0].correct),
            (4, 2)
        );
        assert!((sum.kpis["spend"].squares - 18.0).abs() < 1e-12);
        assert_eq!(sum.features["age"], [0, 2]);
    }
}

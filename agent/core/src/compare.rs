//! Do the answers of stable and candidate agree?
//!
//! # Why the argmax
//!
//! A candidate is a *better* model: its probabilities differ from stable's by design,
//! often in every digit. Comparing them with a tolerance would call every retrained
//! model broken, or, with a tolerance wide enough, none. What a client of a classifier
//! acts on is the class that wins. So where an answer has scores (floats of rank 2 with
//! at least two columns: `[n, classes]`), two answers agree when the same class wins in
//! every row and the labels are equal, and other floats (calibrations, distances) are
//! only reported in `max_difference`. Where there are no scores (a regression, an
//! embedding), floats must be near each other and everything else equal.
//!
//! A regression with two or more outputs in one tensor looks like scores to this rule;
//! give each its own output if that matters.
//!
//! Deliberately absent: who is right. Agreement tells the judge that the candidate is a
//! relative of stable (same inputs, same preprocessing, same class order); the accuracy
//! of both comes from the validation suite.

use std::collections::BTreeMap;

use crate::answer::{best, score_columns};
use crate::tensor::{Tensor, TensorData};

/// How near two floats must be: `|a - b| <= absolute + relative * |a|`, `a` from stable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Allowed around zero.
    pub absolute: f64,
    /// Allowed in proportion to stable's value.
    pub relative: f64,
}

/// Wide enough for another order of summation or another engine, not for another model.
impl Default for Comparison {
    fn default() -> Self {
        Self {
            absolute: 1e-3,
            relative: 1e-2,
        }
    }
}

/// What came of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Whether the two answers say the same.
    pub agreed: bool,
    /// Whether the same class won in every row; `None`: there are no comparable scores.
    pub argmax_agreed: Option<bool>,
    /// The largest difference of two floats that could be compared, scores included;
    /// infinite where one is NaN or the other infinity.
    pub max_difference: f64,
    /// The first disagreement, for people. `None` when they agree.
    pub reason: Option<String>,
}

/// Compares two answers, output by output, by name.
#[must_use]
pub fn compare(stable: &[Tensor], candidate: &[Tensor], comparison: &Comparison) -> Agreement {
    let others: BTreeMap<_, _> = candidate.iter().map(|t| (t.name.as_str(), t)).collect();
    let has_scores = stable.iter().any(|t| score_columns(t).is_some());
    let mut agreement = Agreement {
        agreed: true,
        argmax_agreed: None,
        max_difference: 0.0,
        reason: None,
    };
    for tensor in stable {
        match others.get(tensor.name.as_str()) {
            Some(other) => agreement.add(tensor, other, has_scores, comparison),
            None => agreement.disagree(format!("the candidate has no output {:?}", tensor.name)),
        }
    }
    for other in candidate {
        if !stable.iter().any(|t| t.name == other.name) {
            agreement.disagree(format!("stable has no output {:?}", other.name));
        }
    }
    agreement
}

impl Agreement {
    fn disagree(&mut self, reason: String) {
        self.agreed = false;
        self.reason.get_or_insert(reason);
    }

    fn add(&mut self, a: &Tensor, b: &Tensor, has_scores: bool, comparison: &Comparison) {
        let name = &a.name;
        let types = (a.data.datatype(), b.data.datatype());
        if types.0 != types.1 || a.shape != b.shape || a.data.len() != b.data.len() {
            return self.disagree(format!(
                "output {name:?} is {} {:?} of stable, {} {:?} of the candidate",
                types.0, a.shape, types.1, b.shape
            ));
        }
        let (Some(floats_a), Some(floats_b)) = (floats(&a.data), floats(&b.data)) else {
            if a.data != b.data {
                self.disagree(format!("output {name:?} differs"));
            }
            return;
        };
        let difference = max_difference(&floats_a, &floats_b);
        self.max_difference = self.max_difference.max(difference);
        if let Some(columns) = score_columns(a) {
            let rows = floats_a.chunks(columns).zip(floats_b.chunks(columns));
            let other_winner = rows.enumerate().find(|(_, (a, b))| winner(a) != winner(b));
            self.argmax_agreed = Some(self.argmax_agreed.unwrap_or(true) && other_winner.is_none());
            if let Some((row, _)) = other_winner {
                self.disagree(format!(
                    "another class wins in row {row} of output {name:?}"
                ));
            }
        } else if !has_scores {
            let mut pairs = floats_a.iter().zip(&floats_b);
            if !pairs.all(|(a, b)| near(*a, *b, comparison)) {
                self.disagree(format!("output {name:?} differs by up to {difference}"));
            }
        }
    }
}

fn floats(data: &TensorData) -> Option<Vec<f64>> {
    match data {
        TensorData::Fp32(values) => Some(values.iter().map(|v| f64::from(*v)).collect()),
        TensorData::Fp64(values) => Some(values.clone()),
        TensorData::Bool(_)
        | TensorData::Uint8(_)
        | TensorData::Uint16(_)
        | TensorData::Uint32(_)
        | TensorData::Uint64(_)
        | TensorData::Int8(_)
        | TensorData::Int16(_)
        | TensorData::Int32(_)
        | TensorData::Int64(_)
        | TensorData::Bytes(_) => None,
    }
}

/// The first of the largest; `None` where a NaN makes the row name no class.
fn winner(row: &[f64]) -> Option<usize> {
    best(row).map(|(column, _)| column)
}

/// NaN agrees with NaN (both have no answer) and with nothing else.
fn near(a: f64, b: f64, comparison: &Comparison) -> bool {
    let difference = difference(a, b);
    difference == 0.0
        || (difference.is_finite()
            && difference <= comparison.absolute + comparison.relative * a.abs())
}

fn difference(a: f64, b: f64) -> f64 {
    if a.to_bits() == b.to_bits() || a == b || (a.is_nan() && b.is_nan()) {
        0.0
    } else if a.is_nan() || b.is_nan() {
        f64::INFINITY
    } else {
        (a - b).abs()
    }
}

fn max_difference(a: &[f64], b: &[f64]) -> f64 {
    let differences = a.iter().zip(b).map(|(a, b)| difference(*a, *b));
    differences.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize], data: TensorData) -> Tensor {
        Tensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data,
        }
    }

    fn scores(values: &[f32]) -> Tensor {
        tensor(
            "probabilities",
            &[values.len() / 2, 2],
            TensorData::Fp32(values.to_vec()),
        )
    }

    fn labels(values: &[i64]) -> Tensor {
        tensor("label", &[values.len()], TensorData::Int64(values.to_vec()))
    }

    fn prices(values: &[f64]) -> Tensor {
        tensor(
            "price",
            &[values.len(), 1],
            TensorData::Fp64(values.to_vec()),
        )
    }

    fn agree(stable: &[Tensor], candidate: &[Tensor]) -> bool {
        let agreement = compare(stable, candidate, &Comparison::default());
        assert_eq!(agreement.agreed, agreement.reason.is_none());
        agreement.agreed
    }

    #[test]
    fn a_better_model_with_other_probabilities_and_the_same_winners_agrees() {
        let agreement = compare(
            &[labels(&[1, 0]), scores(&[0.4, 0.6, 0.9, 0.1])],
            &[scores(&[0.1, 0.9, 0.65, 0.35]), labels(&[1, 0])],
            &Comparison::default(),
        );
        assert!(agreement.agreed);
        assert_eq!(agreement.argmax_agreed, Some(true));
        assert!((agreement.max_difference - 0.3).abs() < 1e-6);
        assert_eq!(agreement.reason, None);
    }

    #[test]
    fn one_row_with_another_winner_disagrees() {
        let agreement = compare(
            &[scores(&[0.4, 0.6, 0.51, 0.49])],
            &[scores(&[0.4, 0.6, 0.49, 0.51])],
            &Comparison::default(),
        );
        assert!(!agreement.agreed);
        assert_eq!(agreement.argmax_agreed, Some(false));
        assert!(agreement.reason.is_some_and(|r| r.contains("row 1")));
    }

    #[test]
    fn labels_beside_scores_must_be_equal_and_other_floats_need_not() {
        let with = |label, margin| {
            let margin = tensor("margin", &[1], TensorData::Fp32(vec![margin]));
            [scores(&[0.4, 0.6]), labels(&[label]), margin]
        };
        assert!(agree(&with(1, 0.2), &with(1, 7.0)));
        assert!(!agree(&with(1, 0.2), &with(2, 0.2)));
    }

    #[test]
    fn without_scores_floats_must_be_near() {
        assert!(agree(&[prices(&[100.0, 0.0])], &[prices(&[100.9, 0.0009])]));
        assert!(!agree(&[prices(&[100.0])], &[prices(&[101.1])]));
        let agreement = compare(
            &[prices(&[100.0])],
            &[prices(&[101.1])],
            &Comparison {
                absolute: 0.0,
                relative: 0.02,
            },
        );
        assert!(agreement.agreed);
        assert_eq!(agreement.argmax_agreed, None);
    }

    #[test]
    fn everything_that_is_not_a_float_must_be_equal() {
        let of = |data: TensorData| [tensor("x", &[1], data)];
        let bytes = |text: &str| of(TensorData::Bytes(vec![text.into()]));
        assert!(agree(&bytes("cat"), &bytes("cat")));
        assert!(!agree(&bytes("cat"), &bytes("dog")));
        let truth = |value| of(TensorData::Bool(vec![value]));
        assert!(!agree(&truth(true), &truth(false)));
        assert!(!agree(
            &of(TensorData::Uint8(vec![1])),
            &of(TensorData::Uint8(vec![2]))
        ));
    }

    #[test]
    fn nan_never_agrees_with_a_number_and_infinities_agree_with_themselves() {
        for (a, b, expected) in [
            (f64::NAN, 1.0, false),
            (1.0, f64::NAN, false),
            (f64::NAN, f64::NAN, true),
            (f64::INFINITY, f64::INFINITY, true),
            (f64::INFINITY, f64::NEG_INFINITY, false),
            (f64::INFINITY, 1.0, false),
        ] {
            assert_eq!(agree(&[prices(&[a])], &[prices(&[b])]), expected, "{a} {b}");
        }
        let nan = [scores(&[f32::NAN, 0.6])];
        let agreement = compare(&[scores(&[0.4, 0.6])], &nan, &Comparison::default());
        assert_eq!(agreement.argmax_agreed, Some(false));
        assert_eq!(agreement.max_difference, f64::INFINITY);
    }

    #[test]
    fn missing_extra_and_misshapen_outputs_disagree() {
        assert!(!agree(&[prices(&[1.0]), labels(&[1])], &[prices(&[1.0])]));
        assert!(!agree(&[prices(&[1.0])], &[prices(&[1.0]), labels(&[1])]));
        assert!(!agree(&[prices(&[1.0])], &[prices(&[1.0, 1.0])]));
        let narrow = tensor("price", &[1, 1], TensorData::Fp32(vec![1.0]));
        assert!(!agree(&[prices(&[1.0])], &[narrow]));
        assert!(!agree(&[scores(&[0.4, 0.6])], &[]));
    }

    #[test]
    fn the_first_of_equal_scores_wins_and_an_empty_batch_agrees() {
        assert!(agree(&[scores(&[0.5, 0.5])], &[scores(&[0.6, 0.4])]));
        assert!(!agree(&[scores(&[0.5, 0.5])], &[scores(&[0.4, 0.6])]));
        assert!(agree(&[scores(&[])], &[scores(&[])]));
    }
}

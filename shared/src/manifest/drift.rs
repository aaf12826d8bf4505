//! What the inputs of a version were like when it was trained: bins and counts of
//! features, against which agents count what comes in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{DataType, ModelSignature};
use crate::feedback::{TAG, is_tag};
use crate::limits::{FEATURE_BINS_MAX, FEATURES_MAX};

/// One feature: where it lies in a request, its bins, and what training saw in them.
///
/// ```toml
/// [drift.age]
/// input = "input"
/// column = 3
/// edges = [18.0, 30.0, 65.0]        # below 18, 18 to 30, 30 to 65, from 65 on
/// counts = [120, 4200, 9800, 2100]
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftFeature {
    /// The input tensor, a numeric one.
    pub input: String,
    /// Which element of a row, from 0.
    #[serde(default)]
    pub column: usize,
    /// Where one bin ends and the next begins, growing. A value on an edge is in the upper bin.
    pub edges: Vec<f64>,
    /// How many training rows were in each bin: one more than there are edges.
    pub counts: Vec<u64>,
}

impl DriftFeature {
    /// The bin of a value.
    #[must_use]
    pub fn bin(&self, value: f64) -> usize {
        self.edges.partition_point(|edge| *edge <= value)
    }

    /// What is wrong with it, if anything.
    fn broken(&self, signature: &ModelSignature) -> Option<String> {
        let input = signature.inputs.iter().find(|spec| spec.name == self.input);
        let Some(input) = input else {
            return Some(format!("the model has no input {:?}", self.input));
        };
        if input.datatype == DataType::Bytes {
            return Some(format!("its input {:?} holds no numbers", self.input));
        }
        // The batch is not part of a row; other open dimensions can be any length.
        let mut per_row = input.shape.iter().skip(usize::from(input.is_batched()));
        let width = per_row.try_fold(1_i64, |width, &dim| {
            (dim >= 0).then(|| width.saturating_mul(dim))
        });
        let column = i64::try_from(self.column).unwrap_or(i64::MAX);
        if let Some(width) = width.filter(|width| column >= *width) {
            return Some(format!(
                "its column {column} is not in a row of {width}: columns begin with 0"
            ));
        }
        if self.edges.is_empty() || self.counts.len() > FEATURE_BINS_MAX {
            return Some(format!("it must have 2 to {FEATURE_BINS_MAX} bins"));
        }
        if self.counts.len() != self.edges.len() + 1 {
            return Some(format!(
                "{} edges make {} bins, but it has {} counts",
                self.edges.len(),
                self.edges.len() + 1,
                self.counts.len()
            ));
        }
        let grow = self.edges.windows(2).all(|pair| pair[0] < pair[1]);
        if !grow || self.edges.iter().any(|edge| !edge.is_finite()) {
            return Some("its edges must be numbers that grow".to_owned());
        }
        None
    }
}

/// The first rule that the features of a manifest break.
pub(super) fn broken(
    features: &BTreeMap<String, DriftFeature>,
    signature: &ModelSignature,
) -> Option<String> {
    if features.len() > FEATURES_MAX {
        return Some(format!(
            "it has more than {FEATURES_MAX} drift features: choose those that matter"
        ));
    }
    if let Some(name) = features.keys().find(|name| !is_tag(name)) {
        return Some(format!("the drift feature {name:?} is no {TAG}"));
    }
    features.iter().find_map(|(name, feature)| {
        let why = feature.broken(signature)?;
        Some(format!("drift feature {name}: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::TensorSpec;

    fn signature() -> ModelSignature {
        let spec = |name: &str, datatype| TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: vec![-1, 4],
        };
        ModelSignature {
            inputs: vec![spec("input", DataType::Fp32), spec("text", DataType::Bytes)],
            outputs: vec![],
        }
    }

    fn age() -> DriftFeature {
        DriftFeature {
            input: "input".to_owned(),
            column: 3,
            edges: vec![18.0, 30.0],
            counts: vec![1, 2, 3],
        }
    }

    fn why(change: impl FnOnce(&mut DriftFeature)) -> Option<String> {
        let mut age = age();
        change(&mut age);
        broken(&BTreeMap::from([("age".to_owned(), age)]), &signature())
    }

    #[test]
    fn a_value_on_an_edge_is_in_the_upper_bin() {
        let bins = [17.9, 18.0, 29.9, 30.0, 99.0].map(|value| age().bin(value));
        assert_eq!(bins, [0, 1, 1, 2, 2]);
    }

    #[test]
    fn a_feature_that_cannot_be_counted_is_refused() {
        assert_eq!(why(|_| {}), None);
        type Change = fn(&mut DriftFeature);
        let cases: [(Change, &str); 7] = [
            (|f| f.input = "nothing".to_owned(), "no input \"nothing\""),
            (|f| f.input = "text".to_owned(), "holds no numbers"),
            (|f| f.column = 4, "row of 4"),
            (|f| f.edges.clear(), "2 to 32 bins"),
            (|f| f.counts.push(1), "2 edges make 3 bins"),
            (|f| f.edges = vec![30.0, 18.0], "grow"),
            (|f| f.edges = vec![18.0, f64::NAN], "grow"),
        ];
        for (change, says) in cases {
            let why = why(change).unwrap();
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn features_have_a_bound_and_names() {
        let many = (0..=FEATURES_MAX).map(|i| (i.to_string(), age())).collect();
        assert!(broken(&many, &signature()).unwrap().contains("more than"));
        let unnamed = BTreeMap::from([(String::new(), age())]);
        assert!(broken(&unnamed, &signature()).unwrap().contains("48 bytes"));
    }
}

//! Which bin each feature of a request's rows is in, as the version's manifest has them.

use std::collections::BTreeMap;

use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::limits::{FEATURE_BINS_MAX, FEATURES_MAX};
use rollcall_shared::manifest::{DriftFeature, Manifest};

/// The features of one version, their bins laid out one after another.
#[derive(Clone, Debug, Default)]
pub struct Features(Vec<Feature>);

#[derive(Clone, Debug)]
struct Feature {
    name: String,
    /// Which tensor, in the signature's order.
    input: usize,
    batched: bool,
    /// Its first bin among all.
    first_bin: usize,
    as_declared: DriftFeature,
}

/// The bins of one row; [`NOWHERE`] where it has no number.
pub(super) type RowBins = [u16; FEATURES_MAX];
const NOWHERE: u16 = u16::MAX;
const _: () = assert!(FEATURES_MAX * FEATURE_BINS_MAX < NOWHERE as usize);

impl Features {
    /// Those that the manifest declares.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        let inputs = &manifest.signature.inputs;
        let mut first_bin = 0;
        let mut features = Vec::new();
        // A manifest that was opened names inputs that exist.
        for (name, declared) in manifest.metadata.drift.iter().take(FEATURES_MAX) {
            let input = inputs.iter().position(|spec| spec.name == declared.input);
            let Some(input) = input else { continue };
            features.push(Feature {
                name: name.clone(),
                input,
                batched: inputs[input].is_batched(),
                first_bin,
                as_declared: declared.clone(),
            });
            first_bin += declared.counts.len();
        }
        Self(features)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Rows of a request, its inputs in the signature's order.
    pub(super) fn rows(&self, inputs: &[Tensor]) -> usize {
        let rows = self.0.iter().filter_map(|feature| {
            let tensor = inputs.get(feature.input)?;
            let rows = tensor.shape.first().filter(|_| feature.batched);
            Some(rows.copied().unwrap_or(1))
        });
        rows.max().unwrap_or(0)
    }

    /// The bins of one row.
    pub(super) fn bins(&self, inputs: &[Tensor], row: usize) -> RowBins {
        let mut bins = [NOWHERE; FEATURES_MAX];
        for (bin, feature) in bins.iter_mut().zip(&self.0) {
            let at = feature.bin(inputs, row);
            *bin = at.and_then(|at| u16::try_from(at).ok()).unwrap_or(NOWHERE);
        }
        bins
    }

    /// Adds a row to counts of all bins.
    pub(super) fn add(&self, counts: &mut Vec<u64>, bins: &RowBins) {
        if counts.is_empty() {
            let bins = self
                .0
                .iter()
                .map(|feature| feature.as_declared.counts.len());
            counts.resize(bins.sum(), 0);
        }
        for bin in bins {
            if let Some(count) = counts.get_mut(usize::from(*bin)) {
                *count += 1;
            }
        }
    }

    /// Counts of all bins, by feature.
    pub(super) fn by_name(&self, counts: &[u64]) -> BTreeMap<String, Vec<u64>> {
        let of = |feature: &Feature| {
            let end = feature.first_bin + feature.as_declared.counts.len();
            let bins = counts.get(feature.first_bin..end)?;
            Some((feature.name.clone(), bins.to_vec()))
        };
        self.0.iter().filter_map(of).collect()
    }
}

impl Feature {
    fn bin(&self, inputs: &[Tensor], row: usize) -> Option<usize> {
        let tensor = inputs.get(self.input)?;
        let rows = if self.batched {
            *tensor.shape.first()?
        } else {
            1
        };
        let width = tensor.data.len().checked_div(rows)?;
        let column = self.as_declared.column;
        if row >= rows || column >= width {
            return None;
        }
        let value = tensor.data.number(row * width + column)?;
        Some(self.first_bin + self.as_declared.bin(value))
    }
}

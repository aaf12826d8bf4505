//! Drift: has the distribution over bins (scores, classes, a feature) moved away from stable's?
//!
//! The population stability index, because operators know it and have its thresholds in mind:
//!
//! ```text
//! PSI = sum over bins of (a - b) ln(a/b)       a, b: shares, each with 1/2 added to its count
//! ```
//!
//! It is the symmetric Kullback-Leibler divergence, so it is above 0 for two samples of the same
//! distribution too, by about `(1/N + 1/M) chi2(B-1)` with N and M counts in B bins (Yurdakul,
//! "Statistical properties of population stability index", Western Michigan University 2018). The
//! folklore limits of 0.1 and 0.25 ignore that, and call a small sample drifted. So a limit counts
//! only above the `1 - alpha` quantile of that null.
//!
//! Assumes independent answers, and most bins with some expected counts: in very sparse ones the
//! halves pull samples of different size apart. The bound is for one look at fixed samples, not
//! for any number of looks: an alert, and no proof. Bins that both leave empty are no bins.

use std::collections::{BTreeMap, BTreeSet};

use statrs::distribution::{ChiSquared, ContinuousCDF as _};

use super::count;

/// How far two distributions are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drift {
    /// The population stability index.
    pub psi: f64,
    /// What samples of this size from one distribution exceed with probability `alpha`.
    pub null: f64,
}

impl Drift {
    /// Of counts in the same bins; the shorter list goes on with zeros. `None` when one side has
    /// no counts, or all are in one bin.
    #[must_use]
    pub fn between_bins(candidate: &[u64], stable: &[u64], alpha: f64) -> Option<Self> {
        let at = |counts: &[u64], bin| counts.get(bin).copied().unwrap_or_default();
        let bins = 0..candidate.len().max(stable.len());
        let pairs = bins.map(|bin| (at(candidate, bin), at(stable, bin)));
        Self::between(pairs.collect(), alpha)
    }

    /// Of counts by name; a name that is not there counts 0. `None` as with bins.
    #[must_use]
    pub fn between_names(
        candidate: &BTreeMap<String, u64>,
        stable: &BTreeMap<String, u64>,
        alpha: f64,
    ) -> Option<Self> {
        let names: BTreeSet<_> = candidate.keys().chain(stable.keys()).collect();
        let at = |counts: &BTreeMap<_, u64>, name| counts.get(name).copied().unwrap_or_default();
        let pairs = names
            .into_iter()
            .map(|name| (at(candidate, name), at(stable, name)));
        Self::between(pairs.collect(), alpha)
    }

    fn between(mut pairs: Vec<(u64, u64)>, alpha: f64) -> Option<Self> {
        pairs.retain(|pair| *pair != (0, 0));
        let of_candidate: u64 = pairs.iter().map(|pair| pair.0).sum();
        let of_stable: u64 = pairs.iter().map(|pair| pair.1).sum();
        if of_candidate == 0 || of_stable == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "few bins")]
        let bins = pairs.len() as f64;
        let chi_squared = ChiSquared::new(bins - 1.0).ok()?;
        let (n, m) = (count(of_candidate), count(of_stable));
        let psi = pairs.iter().map(|(a, b)| {
            let a = (count(*a) + 0.5) / (n + bins / 2.0);
            let b = (count(*b) + 0.5) / (m + bins / 2.0);
            (a - b) * (a / b).ln()
        });
        Some(Self {
            psi: psi.sum(),
            null: (n.recip() + m.recip()) * chi_squared.inverse_cdf(1.0 - alpha),
        })
    }

    /// Whether it is above the `limit` of the policy and above what chance alone makes.
    #[must_use]
    pub fn exceeds(self, limit: f64) -> bool {
        self.psi > limit.max(self.null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::draws::Draws;

    #[test]
    fn the_null_of_ten_bins_is_known() {
        let drift = Drift::between_bins(&[100; 10], &[1_000; 10], 0.01).unwrap();
        assert!(
            drift.psi < 1e-3 && (drift.null - 0.0238).abs() < 5e-5,
            "{drift:?}"
        );
        assert!(!drift.exceeds(0.0));
        let moved = Drift::between_bins(&[400, 600], &[6_000, 4_000], 0.01).unwrap();
        assert!(moved.exceeds(0.15) && !moved.exceeds(0.2), "{moved:?}");
    }

    #[test]
    fn nothing_to_compare_is_no_drift() {
        assert_eq!(Drift::between_bins(&[], &[1, 2], 0.01), None);
        assert_eq!(Drift::between_bins(&[0, 0], &[1, 2], 0.01), None);
        assert_eq!(Drift::between_bins(&[3], &[7], 0.01), None);
    }

    #[test]
    fn names_are_bins_and_empty_bins_are_none() {
        let named = |counts: &[(&str, u64)]| -> BTreeMap<String, u64> {
            counts
                .iter()
                .map(|(name, n)| ((*name).to_owned(), *n))
                .collect()
        };
        let by_name = Drift::between_names(
            &named(&[("cat", 30), ("dog", 70)]),
            &named(&[("cat", 500), ("cow", 20), ("dog", 480), ("emu", 0)]),
            0.05,
        );
        let by_bin = Drift::between_bins(&[30, 0, 70, 0, 0], &[500, 20, 480], 0.05);
        assert!(by_name.is_some());
        assert_eq!(by_name, by_bin);
    }

    #[test]
    fn small_samples_of_one_distribution_raise_few_alarms() {
        let mut draws = Draws::seeded(1);
        let mut sample = |n| {
            let mut bins = [0; 10];
            for _ in 0..n {
                let bin = (0..9).find(|_| draws.hits(0.25)).unwrap_or(9);
                bins[bin] += 1;
            }
            bins
        };
        let alarms = (0..300)
            .filter(|_| {
                let drift = Drift::between_bins(&sample(300), &sample(1_000), 0.01);
                drift.unwrap().exceeds(0.0)
            })
            .count();
        assert!(alarms <= 9, "{alarms} of 300 at 1 %");
    }
}

//! The little statistics that figures and peers need.

use statrs::distribution::{Beta, ContinuousCDF as _};

/// The normal deviate that 1 % lie above.
pub(super) const Z_99: f64 = 2.326_347_874;

/// Clopper-Pearson interval of a share: contains it with 95 % at least, however rare it is.
/// Clopper and Pearson, Biometrika 26 (1934), by quantiles of the beta distribution.
#[must_use]
pub(super) fn interval(hits: u64, trials: u64) -> (f64, f64) {
    let (hit, rest) = (hits as f64, (trials - hits) as f64);
    let beta = |a, b, q| Beta::new(a, b).map(|beta| beta.inverse_cdf(q));
    // Neither exists where an end is certain.
    let low = beta(hit, rest + 1.0, 0.025).unwrap_or(0.0);
    let high = beta(hit + 1.0, rest, 0.975).unwrap_or(1.0);
    (low, high)
}

/// Where `beyond`, false at `low` and true at `high`, turns.
pub(super) fn bisect(mut low: f64, mut high: f64, beyond: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if beyond(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    f64::midpoint(low, high)
}

/// The value that a share `q` of runs does not exceed; `None` when that is never.
#[must_use]
pub(super) fn quantile(runs: &[Option<u64>], q: f64) -> Option<u64> {
    let mut sorted: Vec<u64> = runs.iter().map(|run| run.unwrap_or(u64::MAX)).collect();
    sorted.sort_unstable();
    let rank = (q * sorted.len() as f64).ceil() as usize;
    let value = sorted.get(rank.max(1) - 1)?;
    (*value != u64::MAX).then_some(*value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_tables() {
        for ((hits, trials), (low, high)) in [
            ((0, 10), (0.0, 0.3085)),
            ((1, 10), (0.0025, 0.4450)),
            ((5, 10), (0.1871, 0.8129)),
            ((10, 10), (0.6915, 1.0)),
            ((0, 10_000), (0.0, 0.000_369)),
        ] {
            let interval = interval(hits, trials);
            assert!(
                (interval.0 - low).abs() < 1e-4,
                "{hits}/{trials}: {interval:?}"
            );
            assert!(
                (interval.1 - high).abs() < 1e-4,
                "{hits}/{trials}: {interval:?}"
            );
        }
    }

    #[test]
    fn a_quantile_that_too_few_runs_reach_is_never() {
        let runs = [Some(3), None, Some(1), Some(2)];
        assert_eq!(quantile(&runs, 0.5), Some(2));
        assert_eq!(quantile(&runs, 0.75), Some(3));
        assert_eq!(quantile(&runs, 0.95), None);
        assert_eq!(quantile(&[], 0.5), None);
    }
}

//! Bias: how far apart are groups of requests that the manifest names?
//!
//! The largest difference of a share between two groups: of answers that name the positive class
//! (demographic parity difference), or of labelled answers that are right (accuracy difference).
//! Those two, because they need no more than is counted anyway.
//!
//! The largest of several differences is above 0 by chance alone, the more so the smaller the
//! groups. So groups below a minimum are left out, and beside the estimate stands what is certain:
//! each group's share has a confidence sequence ([`super::agreement`]) at `alpha` over the number
//! of groups, so all of them hold at once and at every look (union bound), and the groups differ by
//! at least the space between the highest lower end and the lowest upper end.
//!
//! Source of the measures: Agarwal et al. (arXiv 1803.02453), as in Fairlearn. Assumes independent
//! answers. A difference is not yet unfair, and no difference is not yet fair: the policy says
//! which groups, which class and how much.

use super::agreement::interval;
use super::{Trials, count};

/// The largest difference between groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Gap {
    /// The group with the highest share, and its share.
    pub highest: (String, f64),
    /// The group with the lowest share, and its share.
    pub lowest: (String, f64),
    /// What the largest difference is at least, at any look but with probability `alpha`; 0 or more.
    pub certain: f64,
    /// Groups left out, as they are too small.
    pub left_out: usize,
}

impl Gap {
    /// Among groups with at least `least` tries. `None` if fewer than two are left.
    #[must_use]
    pub fn among<'a>(
        groups: impl IntoIterator<Item = (&'a str, Trials)>,
        least: u64,
        alpha: f64,
    ) -> Option<Self> {
        let (groups, small): (Vec<_>, Vec<_>) = groups
            .into_iter()
            .partition(|(_, trials)| trials.n >= least.max(1));
        if groups.len() < 2 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "few groups")]
        let each = alpha / groups.len() as f64;
        let ends = groups
            .iter()
            .map(|(_, trials)| interval(trials.hits, trials.n, each));
        let (above, below) = ends.fold((0.0_f64, 1.0_f64), |(above, below), (lower, upper)| {
            (above.max(lower), below.min(upper))
        });
        let shares = || groups.iter().map(|(name, trials)| (*name, share(*trials)));
        let highest = shares().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let lowest = shares().min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(Self {
            highest: (highest.0.to_owned(), highest.1),
            lowest: (lowest.0.to_owned(), lowest.1),
            certain: (above - below).max(0.0),
            left_out: small.len(),
        })
    }

    /// The largest difference, as it was seen.
    #[must_use]
    pub fn seen(&self) -> f64 {
        self.highest.1 - self.lowest.1
    }
}

fn share(trials: Trials) -> f64 {
    count(trials.hits) / count(trials.n)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn trials(n: u64, hits: u64) -> Trials {
        Trials { n, hits }
    }

    #[test]
    fn the_largest_gap_names_its_groups_and_small_groups_do_not_count() {
        let groups = [
            ("a", trials(1_000, 300)),
            ("b", trials(2_000, 1_000)),
            ("c", trials(500, 200)),
            ("tiny", trials(3, 3)),
        ];
        let gap = Gap::among(groups, 100, 0.01).unwrap();
        assert_eq!(gap.highest, ("b".to_owned(), 0.5));
        assert_eq!(gap.lowest, ("a".to_owned(), 0.3));
        assert_eq!(gap.left_out, 1);
        assert!((gap.seen() - 0.2).abs() < 1e-12);
        assert!(0.05 < gap.certain && gap.certain < 0.15, "{}", gap.certain);
    }

    #[test]
    fn a_gap_that_chance_explains_is_not_certain() {
        let groups = [("a", trials(100, 50)), ("b", trials(100, 58))];
        assert!(Gap::among(groups, 50, 0.01).unwrap().certain.abs() < 1e-12);
        assert_eq!(Gap::among([("a", trials(100, 50))], 50, 0.01), None);
        assert_eq!(
            Gap::among([("a", trials(0, 0)), ("b", trials(0, 0))], 0, 0.01),
            None
        );
    }
}

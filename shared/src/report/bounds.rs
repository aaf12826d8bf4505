//! Whether a report can be what one agent measured: every list within its bound, every sum
//! a number. Whoever sends another is not an agent of ours.

use super::{Quality, Report};
use crate::limits::{
    CLASSES_MAX, FEATURE_BINS_MAX, FEATURES_MAX, KPIS_MAX, SEGMENTS_MAX, SERIES_PER_REPORT_MAX,
    TAG_BYTES_MAX,
};
use crate::report::{CALIBRATION_BINS, SCORE_BINS};

impl Report {
    /// Checks every bound.
    ///
    /// # Errors
    /// What the report has and should not, for a log.
    pub fn check(&self) -> Result<(), &'static str> {
        refuse(
            self.series.len() > SERIES_PER_REPORT_MAX,
            "of too many series",
        )?;
        for series in &self.series {
            refuse(series.segments.len() > SEGMENTS_MAX, "of too many segments")?;
            series.counts.quality.check()?;
            for segment in &series.segments {
                check_names([&segment.name])?;
                segment.counts.quality.check()?;
            }
        }
        Ok(())
    }
}

impl Quality {
    fn check(&self) -> Result<(), &'static str> {
        let Self {
            scores,
            named,
            labelled,
            calibration,
            kpis,
            features,
        } = self;
        let classes = named.len().max(labelled.len());
        refuse(classes > CLASSES_MAX + 1, "of too many classes")?;
        refuse(kpis.len() > KPIS_MAX, "of too many outcomes")?;
        refuse(features.len() > FEATURES_MAX, "of too many features")?;
        let bins = features.values().map(Vec::len).max().unwrap_or(0);
        refuse(
            scores.len() > SCORE_BINS
                || calibration.len() > CALIBRATION_BINS
                || bins > FEATURE_BINS_MAX,
            "of too many bins",
        )?;
        check_names(named.keys())?;
        check_names(labelled.keys())?;
        check_names(kpis.keys())?;
        check_names(features.keys())?;
        let sums = kpis.values().flat_map(|kpi| [kpi.sum, kpi.squares]);
        let mut sums = sums.chain(calibration.iter().map(|bin| bin.confidence));
        refuse(sums.any(|sum| !sum.is_finite()), "with a sum that is none")
    }
}

fn check_names<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), &'static str> {
    let mut names = names.into_iter();
    refuse(
        names.any(|name| name.len() > TAG_BYTES_MAX),
        "with a name that is too long",
    )
}

fn refuse(broken: bool, what: &'static str) -> Result<(), &'static str> {
    if broken { Err(what) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::Moments;

    fn check(change: impl FnOnce(&mut Quality)) -> Result<(), &'static str> {
        let mut quality = Quality::default();
        change(&mut quality);
        quality.check()
    }

    #[test]
    fn lists_beyond_their_bounds_and_sums_that_are_none_are_refused() {
        assert_eq!(check(|_| {}), Ok(()));
        let named = |n: usize| (0..n).map(|i| (i.to_string(), 1)).collect();
        assert_eq!(check(|q| q.named = named(CLASSES_MAX + 1)), Ok(()));
        assert!(check(|q| q.named = named(CLASSES_MAX + 2)).is_err());
        assert!(check(|q| q.scores = vec![0; SCORE_BINS + 1]).is_err());
        let long = "x".repeat(TAG_BYTES_MAX + 1);
        assert!(check(|q| q.named = BTreeMap::from([(long, 1)])).is_err());
        let kpi = |sum| {
            let moments = Moments {
                count: 1,
                sum,
                squares: 1.0,
            };
            BTreeMap::from([("spend".to_owned(), moments)])
        };
        assert_eq!(check(|q| q.kpis = kpi(1.0)), Ok(()));
        assert!(check(|q| q.kpis = kpi(f64::NAN)).is_err());
    }
}

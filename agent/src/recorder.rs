//! What requests did, counted where they run.
//!
//! A series (model, version, role, generation) has one small mutex, held for some
//! tens of nanoseconds; whoever serves a route holds its series by `Arc`, so no
//! request looks anything up. Once a window the counts are taken for the report
//! and added to the totals that Prometheus reads. Memory only: what a crash
//! loses is one window.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::{Generation, ModelName};
use rollcall_shared::limits::SERIES_PER_REPORT_MAX;
use rollcall_shared::report::{Counts, Role, Series};

/// Series held at one time. More: requests of the newest are not counted, which
/// `series_dropped` says. Reached only by hundreds of route swaps within a window.
const SERIES_MAX: usize = 4 * SERIES_PER_REPORT_MAX;

/// Totals kept for Prometheus. More: those of versions that no longer serve go.
const TOTALS_MAX: usize = 1_024;

/// Names a series. Ordered so that a report lists a model's series together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeriesKey {
    /// The model.
    pub model: ModelName,
    /// The version that runs.
    pub version: VersionRef,
    /// As what.
    pub role: Role,
    /// Of the route that sent the requests.
    pub generation: Generation,
}

/// Names a total: a series over all generations.
pub type TotalKey = (ModelName, VersionRef, Role);

/// Counts since the process began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Total {
    /// The counts.
    pub counts: Counts,
    /// Sum of the latencies that `counts.latency` counted.
    pub latency_sum: Duration,
}

/// One series, shared by all requests of a route.
#[derive(Debug, Default)]
pub struct SeriesRecorder(Mutex<Total>);

/// How one request went for a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, after this long in queue and engine.
    Answered(Duration),
    /// The engine failed.
    Failed {
        /// Stable answered instead.
        fallback: bool,
    },
    /// It ran past its deadline, or its queue was full.
    TimedOut {
        /// Stable answered instead.
        fallback: bool,
    },
}

impl SeriesRecorder {
    /// Counts one request.
    pub fn record(&self, outcome: Outcome) {
        let mut total = self.lock();
        let counts = &mut total.counts;
        counts.requests += 1;
        match outcome {
            Outcome::Answered(latency) => {
                counts.latency.record(latency);
                total.latency_sum += latency;
            }
            Outcome::Failed { fallback } => {
                counts.errors += 1;
                counts.failed_keys += 1;
                counts.fallbacks += u64::from(fallback);
            }
            Outcome::TimedOut { fallback } => {
                counts.timeouts += 1;
                counts.failed_keys += 1;
                counts.fallbacks += u64::from(fallback);
            }
        }
    }

    /// Counts a pair of answers.
    pub fn record_pair(&self, agreed: bool) {
        let counts = &mut self.lock().counts;
        counts.compared += 1;
        counts.agreed += u64::from(agreed);
    }

    /// Counts a copy that was dropped because the shadow queue was full.
    pub fn record_shed(&self) {
        self.lock().counts.shed += 1;
    }

    /// What was counted since the last window.
    #[must_use]
    pub fn window(&self) -> Counts {
        self.lock().counts.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Total> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A window's counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// Those that saw requests, at most [`SERIES_PER_REPORT_MAX`].
    pub series: Vec<Series>,
    /// Those left out.
    pub series_dropped: u64,
}

/// All series of the process.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    live: BTreeMap<SeriesKey, Arc<SeriesRecorder>>,
    totals: BTreeMap<TotalKey, Total>,
    dropped: u64,
}

impl Recorder {
    /// The series of this name; made if there is none yet.
    #[must_use]
    pub fn series(&self, key: SeriesKey) -> Arc<SeriesRecorder> {
        let mut book = self.lock();
        if let Some(series) = book.live.get(&key) {
            return Arc::clone(series);
        }
        let series = Arc::new(SeriesRecorder::default());
        if book.live.len() < SERIES_MAX {
            book.live.insert(key, Arc::clone(&series));
        } else {
            book.dropped += 1;
        }
        series
    }

    /// Takes the counts of the window that ends now, and forgets series that no
    /// route and no request holds any more.
    #[must_use]
    pub fn take_window(&self) -> Window {
        let mut book = self.lock();
        let book = &mut *book;
        let mut window = Window {
            series: Vec::new(),
            series_dropped: std::mem::take(&mut book.dropped),
        };
        for (key, recorder) in &book.live {
            let taken = std::mem::take(&mut *recorder.lock());
            if taken.counts == Counts::default() {
                continue;
            }
            add(&mut book.totals, key, &taken);
            if window.series.len() < SERIES_PER_REPORT_MAX {
                window.series.push(Series {
                    model: key.model.clone(),
                    version: key.version,
                    role: key.role,
                    generation: key.generation,
                    counts: taken.counts,
                    segments: Vec::new(),
                });
            } else {
                window.series_dropped += 1;
            }
        }
        book.live
            .retain(|_, recorder| Arc::strong_count(recorder) > 1);
        book.trim_totals();
        window
    }

    /// Everything counted since the process began.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<TotalKey, Total> {
        let book = self.lock();
        let mut totals = book.totals.clone();
        for (key, recorder) in &book.live {
            add(&mut totals, key, &recorder.lock());
        }
        totals
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn trim_totals(&mut self) {
        if self.totals.len() > TOTALS_MAX {
            let live = &self.live;
            self.totals.retain(|(model, version, role), _| {
                live.keys()
                    .any(|key| (&key.model, &key.version, &key.role) == (model, version, role))
            });
        }
    }
}

fn add(totals: &mut BTreeMap<TotalKey, Total>, key: &SeriesKey, counted: &Total) {
    let total = totals
        .entry((key.model.clone(), key.version, key.role))
        .or_default();
    total.counts.merge(&counted.counts);
    total.latency_sum += counted.latency_sum;
}

#[cfg(test)]
mod tests {
    use rollcall_shared::digest::Digest;
    use rollcall_shared::version::Version;

    use super::*;

    fn key(generation: u64, role: Role) -> SeriesKey {
        SeriesKey {
            model: ModelName::new("digits").unwrap(),
            version: VersionRef {
                version: Version::new(1, 0, 0),
                digest: Digest::of(b"x"),
            },
            role,
            generation: Generation(generation),
        }
    }

    #[test]
    fn a_window_is_taken_once_and_totals_keep_everything() {
        let recorder = Recorder::default();
        let series = recorder.series(key(1, Role::Candidate));
        series.record(Outcome::Answered(Duration::from_millis(2)));
        series.record(Outcome::Failed { fallback: true });
        let window = recorder.take_window();
        assert_eq!(window.series.len(), 1);
        let counts = &window.series[0].counts;
        assert_eq!(
            (counts.requests, counts.errors, counts.fallbacks),
            (2, 1, 1)
        );
        assert_eq!(recorder.take_window(), Window::default());
        series.record(Outcome::TimedOut { fallback: false });
        let totals = recorder.totals();
        let total = totals.values().next().unwrap();
        assert_eq!((total.counts.requests, total.counts.timeouts), (3, 1));
        assert_eq!(total.latency_sum, Duration::from_millis(2));
    }

    #[test]
    fn a_series_that_no_route_holds_is_forgotten_after_its_last_window() {
        let recorder = Recorder::default();
        recorder.series(key(1, Role::Stable)).record_shed();
        assert_eq!(recorder.take_window().series.len(), 1);
        assert!(recorder.lock().live.is_empty());
    }

    #[test]
    fn more_series_than_a_report_holds_are_dropped_and_counted() {
        let recorder = Recorder::default();
        let held: Vec<_> = (0..SERIES_PER_REPORT_MAX as u64 + 3)
            .map(|generation| recorder.series(key(generation, Role::Stable)))
            .collect();
        held.iter().for_each(|series| series.record_shed());
        let window = recorder.take_window();
        assert_eq!(
            (window.series.len(), window.series_dropped),
            (SERIES_PER_REPORT_MAX, 3)
        );
    }
}

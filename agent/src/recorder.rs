//! What requests did and what came of them, counted where they run.
//!
//! A series (model, version, role, generation) has one small mutex, held for some
//! tens of nanoseconds; whoever serves a route holds its series by `Arc`, so no
//! request looks anything up. Once a window the counts are taken for the report
//! and added to the totals that Prometheus reads. Memory only: what a crash
//! loses is one window, and the answers that still waited for feedback.
//!
//! | part | holds |
//! | --- | --- |
//! | `tally` | counts that grow |
//! | `names`, `failures`, `features` | segments and classes; who failed a moment ago; input bins |
//! | [`answers`], [`feedback`] | who answered what; labels and outcomes that come later |

pub mod answers;
mod failures;
mod features;
pub mod feedback;
mod names;
mod tally;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_agent_core::answer::{Row, Rows};
use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::{Generation, ModelName};
use rollcall_shared::limits::SERIES_PER_REPORT_MAX;
use rollcall_shared::report::{Counts, OTHER_SEGMENT, Role, Segment, Series};
use rollcall_shared::time::Timestamp;

use self::answers::{Answer, Answers, Judged};
use self::failures::FailedKeys;
pub use self::features::Features;
use self::feedback::{Joined, JoinedTotals};
use self::names::ModelNames;
use self::tally::{Tallies, Tally};

/// Series held at one time. More: requests of the newest are not counted, which
/// `series_dropped` says. Reached only by hundreds of route swaps within a window.
const SERIES_MAX: usize = 4 * SERIES_PER_REPORT_MAX;

/// Series that may live because an answer is remembered. More: all answers are forgotten,
/// so that old series never take the room of new ones.
const SERIES_REMEMBERED_MAX: usize = SERIES_MAX / 2;

/// Rows of an answer counted under one lock.
const ROWS_AT_ONCE: usize = 16;

/// Rows of one answer that feedback can come for; later ones are not remembered, so that
/// one large batch does not push everybody else out.
const ROWS_REMEMBERED_MAX: usize = 64;

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
#[derive(Debug)]
pub struct SeriesRecorder {
    model: ModelName,
    names: Arc<ModelNames>,
    features: Features,
    tallies: Mutex<Tallies>,
    /// Apart from the counts: only failures wait for it.
    failed: Mutex<FailedKeys>,
}

/// What counting must know of a request.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Hash of its id.
    id: u64,
    /// Hash of its sticky key.
    key: u64,
    /// The segment that it named.
    segment: Option<Arc<str>>,
}

/// How a version did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The engine failed.
    Failed,
    /// It ran past its deadline, or its queue was full.
    TimedOut,
}

impl SeriesRecorder {
    /// The segment of this name, as this model's requests are counted by it.
    pub fn segment(&self, name: &str) -> Arc<str> {
        self.names.segment(name)
    }

    /// Counts a request that was answered, after this long in queue and engine. `inputs` in
    /// the signature's order.
    pub fn record_answer(
        &self,
        latency: Duration,
        inputs: &[Tensor],
        rows: &Rows<'_>,
        origin: &Origin,
    ) {
        let segment = origin.segment.as_ref();
        let mut said = [Row::default(); ROWS_AT_ONCE];
        let mut from = 0;
        loop {
            let some = rows.len().saturating_sub(from).min(ROWS_AT_ONCE);
            for (index, row) in said.iter_mut().take(some).enumerate() {
                *row = rows.row(from + index);
            }
            self.count(segment, |tally| {
                if from == 0 {
                    tally.answered(latency);
                }
                for row in &said[..some] {
                    tally.row(row, &self.names);
                }
            });
            from += ROWS_AT_ONCE;
            if from >= rows.len() {
                break;
            }
        }
        if !self.features.is_empty() {
            self.record_inputs(inputs);
        }
    }

    fn record_inputs(&self, inputs: &[Tensor]) {
        for row in 0..self.features.rows(inputs) {
            let bins = self.features.bins(inputs, row);
            self.features.add(&mut lock(&self.tallies).features, &bins);
        }
    }

    /// Counts a request that was not answered; `fallback`: stable answers instead.
    pub fn record_failure(
        &self,
        failure: Failure,
        fallback: bool,
        origin: &Origin,
        now: Timestamp,
    ) {
        let is_first = lock(&self.failed).is_first(origin.key, now);
        self.count(origin.segment.as_ref(), |tally| {
            tally.failed(failure, fallback, is_first);
        });
    }

    /// Counts a pair of answers.
    pub fn record_pair(&self, agreed: bool, origin: &Origin) {
        self.count(origin.segment.as_ref(), |tally| tally.pair(agreed));
    }

    /// Counts a copy that was dropped because the shadow queue was full.
    pub fn record_shed(&self, origin: &Origin) {
        self.count(origin.segment.as_ref(), Tally::shed);
    }

    fn count(&self, segment: Option<&Arc<str>>, with: impl FnMut(&mut Tally)) {
        lock(&self.tallies).count(segment, with);
    }

    /// One row of an answer, to be remembered.
    fn said(self: &Arc<Self>, row: &Row<'_>) -> Judged {
        Judged {
            series: Arc::clone(self),
            class: row.class.map(|class| self.names.class(class)),
            confidence: row.confidence,
        }
    }

    /// What was counted since the last window, and by segment.
    fn take(&self) -> (Total, Vec<Segment>) {
        let taken = std::mem::take(&mut *lock(&self.tallies));
        let total = self.with_features(taken.whole, &taken.features);
        let mut segments: Vec<_> = taken
            .segments
            .into_iter()
            .map(|(name, tally)| Segment {
                name: name.to_string(),
                counts: tally.into_total().counts,
            })
            .collect();
        // The rest stands last.
        segments.sort_by_key(|segment| segment.name == OTHER_SEGMENT);
        (total, segments)
    }

    /// What `take` would take of the whole.
    fn peek(&self) -> Total {
        let (whole, features) = {
            let tallies = lock(&self.tallies);
            (tallies.whole.clone(), tallies.features.clone())
        };
        self.with_features(whole, &features)
    }

    fn with_features(&self, whole: Tally, features: &[u64]) -> Total {
        let mut total = whole.into_total();
        total.counts.quality.features = self.features.by_name(features);
        total
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

/// All series of the process, and the answers that feedback may come for.
#[derive(Debug, Default)]
pub struct Recorder {
    book: Mutex<Book>,
    answers: Answers,
    feedback: JoinedTotals,
    engine_faults: AtomicU64,
    /// Keyed by chance: nobody can aim an id at another's place.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Book {
    live: BTreeMap<SeriesKey, Arc<SeriesRecorder>>,
    names: BTreeMap<ModelName, Arc<ModelNames>>,
    totals: BTreeMap<TotalKey, Total>,
    dropped: u64,
}

impl Recorder {
    /// The series of this name; made, with these input features, if there is none yet.
    #[must_use]
    pub fn series(&self, key: SeriesKey, features: Features) -> Arc<SeriesRecorder> {
        let mut book = lock(&self.book);
        if let Some(series) = book.live.get(&key) {
            return Arc::clone(series);
        }
        let names = book.names.entry(key.model.clone()).or_default();
        let series = Arc::new(SeriesRecorder {
            model: key.model.clone(),
            names: Arc::clone(names),
            features,
            tallies: Mutex::default(),
            failed: Mutex::default(),
        });
        if book.live.len() < SERIES_MAX {
            book.live.insert(key, Arc::clone(&series));
        } else {
            book.dropped += 1;
        }
        series
    }

    /// What counting must know of a request.
    pub fn origin(&self, id: &str, sticky_key: &str, segment: Option<Arc<str>>) -> Origin {
        Origin {
            id: self.hash(id),
            key: self.hash(sticky_key),
            segment,
        }
    }

    fn hash(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }

    /// Remembers what a client was answered, for its label.
    pub fn remember(&self, series: &Arc<SeriesRecorder>, rows: &Rows<'_>, origin: &Origin) {
        for (key, row) in remembered(rows, origin) {
            let answer = Answer {
                given: series.said(&row),
                segment: origin.segment.clone(),
                shadow: None,
                label: None,
                kpis: 0,
            };
            self.answers.remember(key, answer);
        }
    }

    /// Remembers what a shadow would have answered to the same request; a label that is
    /// there by then counts at once.
    pub fn remember_shadow(&self, series: &Arc<SeriesRecorder>, rows: &Rows<'_>, origin: &Origin) {
        for (key, row) in remembered(rows, origin) {
            if row.class.is_none() {
                continue;
            }
            self.answers.find(key, |answer| {
                let said = series.said(&row);
                if let Some(label) = &answer.label {
                    said.label(answer.segment.as_ref(), label);
                }
                answer.shadow = Some(Box::new(said));
            });
        }
    }

    /// Counts a request that no version is to blame for: the node's engine was out of order.
    pub fn record_engine_fault(&self) {
        self.engine_faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Such requests since the process began.
    #[must_use]
    pub fn engine_faults(&self) -> u64 {
        self.engine_faults.load(Ordering::Relaxed)
    }

    /// Feedback since the process began, and answers forgotten before any came.
    #[must_use]
    pub fn feedback(&self) -> (Joined, u64) {
        (self.feedback.read(), self.answers.forgotten())
    }

    /// Takes the counts of the window that ends now, and forgets series that no route, no
    /// request and no remembered answer holds any more.
    #[must_use]
    pub fn take_window(&self) -> Window {
        let mut book = lock(&self.book);
        let book = &mut *book;
        let mut window = Window {
            series: Vec::new(),
            series_dropped: std::mem::take(&mut book.dropped),
        };
        for (key, recorder) in &book.live {
            let (total, segments) = recorder.take();
            if total.counts == Counts::default() {
                continue;
            }
            add(&mut book.totals, key, &total);
            if window.series.len() < SERIES_PER_REPORT_MAX {
                window.series.push(Series {
                    model: key.model.clone(),
                    version: key.version,
                    role: key.role,
                    generation: key.generation,
                    counts: total.counts,
                    segments,
                });
            } else {
                window.series_dropped += 1;
            }
        }
        if book.live.len() > SERIES_REMEMBERED_MAX {
            self.answers.clear();
        }
        book.live
            .retain(|_, recorder| Arc::strong_count(recorder) > 1);
        book.names.retain(|_, names| {
            names.trim();
            Arc::strong_count(names) > 1
        });
        book.trim_totals();
        window
    }

    /// Everything counted since the process began.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<TotalKey, Total> {
        let book = lock(&self.book);
        let mut totals = book.totals.clone();
        for (key, recorder) in &book.live {
            add(&mut totals, key, &recorder.peek());
        }
        totals
    }
}

/// The rows of an answer that are remembered, each with its key. An answer of one row, or
/// of none that says anything, goes by its id alone.
fn remembered<'a>(rows: &'a Rows<'_>, origin: &Origin) -> impl Iterator<Item = (u64, Row<'a>)> {
    let id = origin.id;
    let alone = rows.len() <= 1;
    let count = rows.len().clamp(1, ROWS_REMEMBERED_MAX);
    (0..count).map(move |index| {
        let key = if alone { id } else { row_key(id, index as u64) };
        (key, rows.row(index))
    })
}

/// The key of one row of several (splitmix64's finish).
const fn row_key(id: u64, row: u64) -> u64 {
    let mut key = id ^ (row + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
#[path = "recorder/tests.rs"]
mod tests;

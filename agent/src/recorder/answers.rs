//! Which version answered which request, remembered for the label that may come.
//!
//! A bounded memory without an index: an id's hash picks one of [`SHARDS`] rings, where the
//! oldest answer makes room for the newest. Remembering is what every request pays for, so
//! it writes one place; finding goes through one ring's hashes, and only feedback pays for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::SeriesRecorder;
use super::names::ClassName;

/// Rows of answers remembered: at 1,000 requests a second the last minute's, at 1 a second
/// a day's. When full the oldest is forgotten, and counted if no feedback came for it.
pub const ANSWERS_MAX: usize = 1 << 16;

/// Rings; requests rarely meet in one.
const SHARDS: usize = 64;
const RING: usize = ANSWERS_MAX / SHARDS;

/// What one answer takes, its key included: 7 MiB when the memory is full. Labels that are
/// long texts and what shadows answered come on top.
const ANSWER_BYTES_MAX: usize = 112;
const _: () = assert!(size_of::<Answer>() + size_of::<u64>() <= ANSWER_BYTES_MAX);

/// One row of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) given: Judged,
    pub(super) segment: Option<Arc<str>>,
    /// What the shadow said to the same request.
    pub(super) shadow: Option<Box<Judged>>,
    /// The label, once it came.
    pub(super) label: Option<ClassName>,
    /// Outcomes that came, a bit each.
    pub(super) kpis: u16,
}

/// What a version said.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) series: Arc<SeriesRecorder>,
    pub(super) class: Option<ClassName>,
    pub(super) confidence: Option<f32>,
}

/// The memory.
#[derive(Debug)]
pub(super) struct Answers {
    shards: [Mutex<Ring>; SHARDS],
    forgotten: AtomicU64,
}

#[derive(Debug, Default)]
struct Ring {
    keys: Vec<u64>,
    answers: Vec<Answer>,
    /// The next place to be written: the oldest, once all are taken.
    next: usize,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            forgotten: AtomicU64::new(0),
        }
    }
}

impl Answers {
    pub(super) fn remember(&self, key: u64, answer: Answer) {
        let forgotten = self.with(key, |ring| ring.put(key, answer));
        // Let go of outside the lock.
        self.note_forgotten(forgotten.iter());
    }

    /// Does something with the newest answer of this key, if it is remembered.
    pub(super) fn find<T>(&self, key: u64, then: impl FnOnce(&mut Answer) -> T) -> Option<T> {
        self.with(key, |ring| {
            let at = ring.find(key)?;
            ring.answers.get_mut(at).map(then)
        })
    }

    /// Forgets everything, and with it the series that nothing else holds.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let ring = std::mem::take(&mut *shard.lock().unwrap_or_else(PoisonError::into_inner));
            self.note_forgotten(ring.answers.iter());
        }
    }

    /// How many were forgotten before any feedback came.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    fn note_forgotten<'a>(&self, answers: impl Iterator<Item = &'a Answer>) {
        let unjudged = answers.filter(|answer| answer.label.is_none() && answer.kpis == 0);
        self.forgotten
            .fetch_add(unjudged.count() as u64, Ordering::Relaxed);
    }

    fn with<T>(&self, key: u64, then: impl FnOnce(&mut Ring) -> T) -> T {
        // The high bits; a remainder of any would do.
        let shard = usize::try_from(key >> 58).unwrap_or(0) % SHARDS;
        let mut ring = self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        then(&mut ring)
    }
}

impl Ring {
    fn put(&mut self, key: u64, answer: Answer) -> Option<Answer> {
        let at = self.next;
        self.next = (at + 1) % RING;
        if let (Some(old_key), Some(old)) = (self.keys.get_mut(at), self.answers.get_mut(at)) {
            *old_key = key;
            return Some(std::mem::replace(old, answer));
        }
        self.keys.push(key);
        self.answers.push(answer);
        None
    }

    /// The newest stands before `next`, the oldest at it.
    fn find(&self, key: u64) -> Option<usize> {
        let next = self.next.min(self.keys.len());
        let (newer, older) = self.keys.split_at(next);
        let is_it = |known: &u64| *known == key;
        newer
            .iter()
            .rposition(is_it)
            .or_else(|| Some(next + older.iter().rposition(is_it)?))
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::assignment::VersionRef;
    use rollcall_shared::digest::Digest;
    use rollcall_shared::ids::{Generation, ModelName};
    use rollcall_shared::report::Role;
    use rollcall_shared::version::Version;

    use super::*;
    use crate::recorder::{Features, Recorder, SeriesKey};

    fn answer(class: i64) -> Answer {
        let key = SeriesKey {
            model: ModelName::new("digits").unwrap(),
            version: VersionRef {
                version: Version::new(1, 0, 0),
                digest: Digest::of(b"x"),
            },
            role: Role::Stable,
            generation: Generation(1),
        };
        Answer {
            given: Judged {
                series: Recorder::default().series(key, Features::default()),
                class: Some(ClassName::Number(class)),
                confidence: None,
            },
            segment: None,
            shadow: None,
            label: None,
            kpis: 0,
        }
    }

    fn class(answers: &Answers, key: u64) -> Option<ClassName> {
        answers.find(key, |answer| answer.given.class.clone())?
    }

    #[test]
    fn the_newest_answer_of_an_id_is_found_and_the_oldest_makes_room() {
        let answers = Answers::default();
        // All in one ring.
        for key in 0..RING as u64 {
            answers.remember(key, answer(1));
        }
        answers.remember(7, answer(2));
        assert_eq!(class(&answers, 7), Some(ClassName::Number(2)));
        assert_eq!(class(&answers, 0), None, "its place was taken");
        assert_eq!(class(&answers, 1), Some(ClassName::Number(1)));
        assert_eq!(answers.forgotten(), 1);
        answers.find(1, |answer| answer.kpis = 1);
        answers.remember(9_999, answer(3));
        assert_eq!(class(&answers, 1), None);
        assert_eq!(answers.forgotten(), 1, "feedback came for it");
        answers.clear();
        assert_eq!(class(&answers, 7), None);
        assert_eq!(answers.forgotten(), 1 + RING as u64);
    }
}

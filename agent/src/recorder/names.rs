//! The names that one model's requests and answers carry: segments, classes, outcomes.
//!
//! All versions of a model share them, so that stable and candidate tell the same ones apart.
//! Each kind has a bound; whoever comes when it is reached is counted as `other`, or refused.
//! A segment or class that nothing counts or remembers any more makes room for another.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rollcall_agent_core::answer::Class;
use rollcall_shared::limits::{CLASSES_MAX, KPIS_MAX, SEGMENTS_MAX};
use rollcall_shared::report::OTHER_SEGMENT;

/// Segments told apart; beside them there is `other`.
const NAMED_SEGMENTS_MAX: usize = SEGMENTS_MAX - 1;

/// A class that is remembered longer than the answer that named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClassName {
    Number(i64),
    Text(Arc<str>),
}

impl ClassName {
    /// A label, read as an answer's text is.
    pub(super) fn of_label(label: &str) -> Self {
        match Class::of_text(label) {
            Class::Number(number) => Self::Number(number),
            Class::Text(text) => Self::Text(text.into()),
        }
    }

    /// This label beside what was answered: where one side speaks of truth and the other of
    /// 1 and 0, they mean the same.
    pub(super) fn beside(&self, answered: &Self) -> Self {
        match (self, answered) {
            (Self::Text(text), Self::Number(_)) => match &**text {
                "true" => Self::Number(1),
                "false" => Self::Number(0),
                _ => self.clone(),
            },
            (Self::Number(number @ (0 | 1)), Self::Text(text)) => match &**text {
                "true" | "false" if *number == 1 => Self::Text("true".into()),
                "true" | "false" => Self::Text("false".into()),
                _ => self.clone(),
            },
            (Self::Number(_) | Self::Text(_), _) => self.clone(),
        }
    }

    pub(super) fn text(&self) -> Arc<str> {
        match self {
            Self::Number(number) => number.to_string().into(),
            Self::Text(text) => Arc::clone(text),
        }
    }
}

/// The names of one model.
#[derive(Debug)]
pub(super) struct ModelNames {
    segments: Mutex<BTreeSet<Arc<str>>>,
    classes: Mutex<BTreeSet<Arc<str>>>,
    kpis: Mutex<Vec<Box<str>>>,
    other: Arc<str>,
}

impl Default for ModelNames {
    fn default() -> Self {
        Self {
            segments: Mutex::default(),
            classes: Mutex::default(),
            kpis: Mutex::default(),
            other: OTHER_SEGMENT.into(),
        }
    }
}

impl ModelNames {
    /// The segment of this name, or `other`.
    pub(super) fn segment(&self, name: &str) -> Arc<str> {
        intern(&mut lock(&self.segments), name, NAMED_SEGMENTS_MAX)
            .unwrap_or_else(|| Arc::clone(&self.other))
    }

    /// The class, to be remembered. Allocates only for a text seen for the first time, or
    /// beyond the bound.
    pub(super) fn class(&self, class: Class<'_>) -> ClassName {
        match class {
            Class::Number(number) => ClassName::Number(number),
            Class::Text(text) => {
                let known = intern(&mut lock(&self.classes), text, CLASSES_MAX);
                ClassName::Text(known.unwrap_or_else(|| text.into()))
            }
        }
    }

    /// Whether a class is counted by its own name. Small numbers are indexes and always
    /// are, so that every node tells the same ones apart.
    pub(super) fn counts(&self, class: Class<'_>) -> bool {
        let name;
        let text = match class {
            Class::Number(number) if is_index(number) => return true,
            Class::Number(number) => {
                name = number.to_string();
                &name
            }
            Class::Text(text) => text,
        };
        intern(&mut lock(&self.classes), text, CLASSES_MAX).is_some()
    }

    /// The number of an outcome's name, below [`KPIS_MAX`]; `None`: there are too many.
    pub(super) fn kpi(&self, name: &str) -> Option<usize> {
        let mut kpis = lock(&self.kpis);
        let known = kpis.iter().position(|known| **known == *name);
        if known.is_none() && kpis.len() < KPIS_MAX {
            kpis.push(name.into());
            return Some(kpis.len() - 1);
        }
        known
    }

    /// Forgets names that nobody else holds, where room is short.
    pub(super) fn trim(&self) {
        for (names, most) in [
            (&self.segments, NAMED_SEGMENTS_MAX),
            (&self.classes, CLASSES_MAX),
        ] {
            let mut names = lock(names);
            if names.len() >= most {
                names.retain(|name| Arc::strong_count(name) > 1);
            }
        }
    }
}

/// Whether a number is counted by its place.
pub(super) fn is_index(number: i64) -> bool {
    usize::try_from(number).is_ok_and(|index| index < CLASSES_MAX)
}

fn intern(names: &mut BTreeSet<Arc<str>>, name: &str, most: usize) -> Option<Arc<str>> {
    if let Some(known) = names.get(name) {
        return Some(Arc::clone(known));
    }
    if names.len() >= most {
        return None;
    }
    let new: Arc<str> = name.into();
    names.insert(Arc::clone(&new));
    Some(new)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_beyond_the_bound_are_other_until_one_is_let_go() {
        let names = ModelNames::default();
        let held: Vec<_> = (0..NAMED_SEGMENTS_MAX)
            .map(|i| names.segment(&i.to_string()))
            .collect();
        assert_eq!(&*names.segment("late"), OTHER_SEGMENT);
        assert!(Arc::ptr_eq(&names.segment("7"), &held[7]));
        names.trim();
        assert_eq!(&*names.segment("late"), OTHER_SEGMENT);
        drop(held);
        names.trim();
        assert_eq!(&*names.segment("late"), "late");
    }

    #[test]
    fn small_numbers_are_always_classes_and_others_share_the_room() {
        let names = ModelNames::default();
        let of = |i: i64| Class::Number(i);
        for number in 1_000..1_000 + CLASSES_MAX as i64 {
            assert!(names.counts(of(number)));
        }
        assert!(names.counts(of(63)) && names.counts(of(1_000)));
        assert!(!names.counts(of(-1)) && !names.counts(Class::Text("spam")));
        assert_eq!(
            names.class(Class::Text("spam")),
            ClassName::Text("spam".into()),
            "what an answer said is remembered even where it is not counted by name"
        );
    }

    #[test]
    fn truth_and_one_are_the_same_label_where_they_meet() {
        let label = ClassName::of_label;
        for (given, answered, same) in [
            ("true", "1", true),
            ("false", "0", true),
            ("1", "true", true),
            ("0", "true", false),
            ("true", "true", true),
            ("3", "3", true),
            ("03", "3", false),
            ("2", "true", false),
        ] {
            let answered = label(answered);
            assert_eq!(label(given).beside(&answered) == answered, same, "{given}");
        }
    }

    #[test]
    fn a_seventeenth_kpi_has_no_room() {
        let names = ModelNames::default();
        for i in 0..KPIS_MAX {
            assert_eq!(names.kpi(&i.to_string()), Some(i));
        }
        assert_eq!(names.kpi("late"), None);
        assert_eq!(names.kpi("3"), Some(3));
    }
}

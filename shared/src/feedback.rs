//! What came of answers, told afterwards: the right label, and outcomes that are numbers.
//!
//! An item names the request that it is about by the request's id; whoever answered it and
//! still remembers counts the item for the version that answered. The same shape travels as
//! JSON (to an agent, or to the coordinator's API) and in the wire's binary form.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::ids::ModelName;
use crate::limits::{FEEDBACK_ITEMS_MAX, KPIS_MAX, TAG_BYTES_MAX, TEXT_BYTES_MAX};

/// Feedback for one model, from the coordinator to its agents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feedback {
    /// The model whose answers it is about.
    pub model: ModelName,
    /// At most [`FEEDBACK_ITEMS_MAX`].
    pub items: Vec<FeedbackItem>,
}

/// What came of one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedbackItem {
    /// The request's id, as its answer says it.
    pub id: String,
    /// Which row of the answer, from 0. Needed where the answer has several.
    #[serde(default)]
    pub row: Option<u32>,
    /// The right class, as text. In JSON a text, a whole number, or true or false.
    #[serde(default, deserialize_with = "label")]
    pub label: Option<String>,
    /// Outcomes by name, e.g. `spend = 12.5`.
    #[serde(default)]
    pub kpis: BTreeMap<String, f64>,
}

impl FeedbackItem {
    /// Checks every bound.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(&self) -> Result<(), String> {
        let Self {
            id, label, kpis, ..
        } = self;
        if id.is_empty() || id.len() > TEXT_BYTES_MAX {
            return Err(format!(
                "\"id\" is the id of a request: 1 to {TEXT_BYTES_MAX} bytes"
            ));
        }
        if label.is_none() && kpis.is_empty() {
            return Err(format!(
                "the item of id {id:?} says nothing: give it a \"label\", \"kpis\" or both"
            ));
        }
        if let Some(label) = label.as_ref().filter(|label| !is_tag(label)) {
            return Err(format!("the label {label:?} of id {id:?} is no {TAG}"));
        }
        if kpis.len() > KPIS_MAX {
            return Err(format!("id {id:?} has more than {KPIS_MAX} KPIs"));
        }
        for (name, value) in kpis {
            if !is_tag(name) {
                return Err(format!("the KPI {name:?} of id {id:?} is no {TAG}"));
            }
            if !is_kpi_value(*value) {
                return Err(format!(
                    "the KPI {name:?} of id {id:?} must be a number, of 10^15 at most"
                ));
            }
        }
        Ok(())
    }
}

/// Checks a list of items.
///
/// # Errors
/// What is wrong with it or with its first bad item, and what to do.
pub fn check_items(items: &[FeedbackItem]) -> Result<(), String> {
    if items.len() > FEEDBACK_ITEMS_MAX {
        return Err(format!(
            "{} items are too many at once: send at most {FEEDBACK_ITEMS_MAX}",
            items.len()
        ));
    }
    items.iter().try_for_each(FeedbackItem::check)
}

/// What [`is_tag`] asks for, for error messages.
pub const TAG: &str = "name of 1 to 48 bytes without control characters";
const _: () = assert!(TAG_BYTES_MAX == 48);

/// Whether a text can name a segment, a class or a KPI: not empty, at most
/// [`TAG_BYTES_MAX`] bytes, no control characters.
#[must_use]
pub fn is_tag(text: &str) -> bool {
    (1..=TAG_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Whether a number can be an outcome: sums of its square stay numbers for ever.
#[must_use]
pub fn is_kpi_value(value: f64) -> bool {
    value.abs() <= 1e15
}

/// Text as it is in the binary form; JSON may also say a whole number or a truth value.
fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    if !deserializer.is_human_readable() {
        return Option::deserialize(deserializer);
    }
    deserializer.deserialize_any(Label)
}

struct Label;

impl de::Visitor<'_> for Label {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a label: a text, a whole number, true or false")
    }

    fn visit_str<E>(self, label: &str) -> Result<Self::Value, E> {
        Ok(Some(label.to_owned()))
    }

    fn visit_i64<E>(self, label: i64) -> Result<Self::Value, E> {
        Ok(Some(label.to_string()))
    }

    fn visit_u64<E>(self, label: u64) -> Result<Self::Value, E> {
        Ok(Some(label.to_string()))
    }

    fn visit_bool<E>(self, label: bool) -> Result<Self::Value, E> {
        Ok(Some(label.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<FeedbackItem, String> {
        let item: FeedbackItem = serde_json::from_str(json).map_err(|e| e.to_string())?;
        item.check().map(|()| item)
    }

    #[test]
    fn a_label_is_a_text_a_whole_number_or_a_truth_value() {
        for (json, label) in [
            (r#""3""#, "3"),
            ("3", "3"),
            ("-1", "-1"),
            ("true", "true"),
            (r#""spam""#, "spam"),
        ] {
            let item = read(&format!(r#"{{"id": "a", "label": {json}}}"#)).unwrap();
            assert_eq!(item.label.as_deref(), Some(label));
        }
        let refused = read(r#"{"id": "a", "label": 3.5}"#).unwrap_err();
        assert!(refused.contains("whole number"), "{refused}");
    }

    #[test]
    fn bad_items_are_refused_with_what_to_do() {
        let long = "x".repeat(TAG_BYTES_MAX + 1);
        for (json, says) in [
            (r#"{"id": "", "label": 1}"#.to_owned(), "1 to 1024 bytes"),
            (r#"{"id": "a"}"#.to_owned(), "give it"),
            (r#"{"id": "a", "label": null}"#.to_owned(), "give it"),
            (format!(r#"{{"id": "a", "label": "{long}"}}"#), "48 bytes"),
            (
                r#"{"id": "a", "label": "a\nb"}"#.to_owned(),
                "control characters",
            ),
            (
                format!(r#"{{"id": "a", "kpis": {{"{long}": 1}}}}"#),
                "48 bytes",
            ),
            (
                r#"{"id": "a", "kpis": {"spend": 1e300}}"#.to_owned(),
                "10^15",
            ),
            (
                r#"{"id": "a", "lable": 3}"#.to_owned(),
                "unknown field `lable`",
            ),
        ] {
            let refused = read(&json).unwrap_err();
            assert!(refused.contains(says), "{json}: {refused}");
        }
        let kpis: Vec<_> = (0..=KPIS_MAX).map(|i| format!(r#""k{i}": 1"#)).collect();
        let many = format!(r#"{{"id": "a", "kpis": {{{}}}}}"#, kpis.join(","));
        assert!(read(&many).unwrap_err().contains("more than 16"));
    }

    #[test]
    fn too_many_items_are_refused() {
        let item = read(r#"{"id": "a", "label": 1}"#).unwrap();
        let items = vec![item; FEEDBACK_ITEMS_MAX + 1];
        assert!(check_items(&items).unwrap_err().contains("at most"));
        assert_eq!(check_items(&items[1..]), Ok(()));
    }
}

//! What an answer says, row by row: which class it names and how sure it is.
//!
//! A class is named by the first output that looks like a label (whole numbers, truth
//! values or text, one a row), or else by the highest score. Scores are floats of shape
//! `[rows, classes]`; see [`compare`](crate::compare) for why. An answer with neither (a
//! regression, an embedding) names nothing.
//!
//! Nothing here allocates: it runs for every request.

use rollcall_shared::limits::TAG_BYTES_MAX;

use crate::tensor::{Tensor, TensorData};

/// The rows of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    scores: Option<Scores<'a>>,
    labels: Option<&'a TensorData>,
    len: usize,
}

/// What one row says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row<'a> {
    /// The class that it names.
    pub class: Option<Class<'a>>,
    /// Its highest score, where that is a probability (0 to 1).
    pub confidence: Option<f32>,
}

/// A class, as a model names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class<'a> {
    /// An index among scores, or a label that is a whole number, in digits or not.
    Number(i64),
    /// A label that is a text, or `true` and `false`.
    Text(&'a str),
}

impl<'a> Class<'a> {
    /// A text that is a whole number is that number, so that `3` and `"3"` are one class.
    #[must_use]
    pub fn of_text(text: &'a str) -> Self {
        let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
        let is_number = match digits {
            [b'0'] => digits.len() == text.len(),
            [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        match text.parse() {
            Ok(number) if is_number => Self::Number(number),
            _ => Self::Text(text),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Scores<'a> {
    Fp32(&'a [f32], usize),
    Fp64(&'a [f64], usize),
}

impl<'a> Rows<'a> {
    /// Looks at an answer's outputs.
    #[must_use]
    pub fn of(outputs: &'a [Tensor]) -> Self {
        let scores = outputs.iter().find_map(Scores::of);
        let rows = scores.map(|scores| scores.rows());
        let labels = outputs.iter().find(|output| is_label(output, rows));
        let labels = labels.map(|output| &output.data);
        let len = rows.or_else(|| labels.map(TensorData::len)).unwrap_or(0);
        Self {
            scores,
            labels,
            len,
        }
    }

    /// How many rows say something.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the answer names no class and gives no score.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A row; one that is not there says nothing.
    #[must_use]
    pub fn row(&self, index: usize) -> Row<'a> {
        let best = self.scores.and_then(|scores| scores.best(index));
        let class = match self.labels {
            Some(labels) => label(labels, index),
            None => best
                .and_then(|(column, _)| i64::try_from(column).ok())
                .map(Class::Number),
        };
        #[expect(clippy::cast_possible_truncation, reason = "a share, put into bins")]
        let confidence = best
            .map(|(_, score)| score as f32)
            .filter(|score| (0.0..=1.0).contains(score));
        Row { class, confidence }
    }
}

impl<'a> Scores<'a> {
    fn of(output: &'a Tensor) -> Option<Self> {
        let columns = score_columns(output)?;
        match &output.data {
            TensorData::Fp32(scores) => Some(Self::Fp32(scores, columns)),
            TensorData::Fp64(scores) => Some(Self::Fp64(scores, columns)),
            _ => None,
        }
    }

    const fn rows(&self) -> usize {
        match self {
            Self::Fp32(scores, columns) => scores.len() / *columns,
            Self::Fp64(scores, columns) => scores.len() / *columns,
        }
    }

    fn best(&self, row: usize) -> Option<(usize, f64)> {
        match self {
            Self::Fp32(scores, columns) => best(scores.chunks_exact(*columns).nth(row)?),
            Self::Fp64(scores, columns) => best(scores.chunks_exact(*columns).nth(row)?),
        }
    }
}

/// The number of classes, if the tensor holds scores: floats of rank 2 with two columns
/// at least.
pub(crate) fn score_columns(tensor: &Tensor) -> Option<usize> {
    match (tensor.shape.as_slice(), &tensor.data) {
        (&[_, columns], TensorData::Fp32(_) | TensorData::Fp64(_)) if columns >= 2 => Some(columns),
        _ => None,
    }
}

/// The first of the highest scores; `None` where a NaN makes the row name no class.
pub(crate) fn best<T: Copy + Into<f64>>(row: &[T]) -> Option<(usize, f64)> {
    let mut best: Option<(usize, f64)> = None;
    for (column, score) in row.iter().enumerate() {
        let score: f64 = (*score).into();
        if score.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((column, score));
        }
    }
    best
}

/// One element a row, and no float.
fn is_label(output: &Tensor, rows: Option<usize>) -> bool {
    let elements = output.data.len();
    let one_a_row = match output.shape.as_slice() {
        [] | [_] => true,
        [_, columns] => *columns == 1,
        _ => false,
    };
    let is_float = matches!(output.data, TensorData::Fp32(_) | TensorData::Fp64(_));
    one_a_row && !is_float && rows.is_none_or(|rows| rows == elements)
}

fn label(labels: &TensorData, index: usize) -> Option<Class<'_>> {
    let number = match labels {
        TensorData::Uint8(v) => i64::from(*v.get(index)?),
        TensorData::Uint16(v) => i64::from(*v.get(index)?),
        TensorData::Uint32(v) => i64::from(*v.get(index)?),
        TensorData::Uint64(v) => i64::try_from(*v.get(index)?).ok()?,
        TensorData::Int8(v) => i64::from(*v.get(index)?),
        TensorData::Int16(v) => i64::from(*v.get(index)?),
        TensorData::Int32(v) => i64::from(*v.get(index)?),
        TensorData::Int64(v) => *v.get(index)?,
        TensorData::Bool(v) => {
            let truth = if *v.get(index)? { "true" } else { "false" };
            return Some(Class::Text(truth));
        }
        TensorData::Bytes(v) => {
            let text = std::str::from_utf8(v.get(index)?).ok()?;
            // Longer texts are written, not named.
            let is_name = !text.is_empty() && text.len() <= TAG_BYTES_MAX;
            return is_name.then(|| Class::of_text(text));
        }
        TensorData::Fp32(_) | TensorData::Fp64(_) => return None,
    };
    Some(Class::Number(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], data: TensorData) -> Tensor {
        Tensor {
            name: String::new(),
            shape: shape.to_vec(),
            data,
        }
    }

    fn rows(outputs: &[Tensor]) -> Vec<(Option<Class<'_>>, Option<f32>)> {
        let rows = Rows::of(outputs);
        (0..rows.len())
            .map(|index| rows.row(index))
            .map(|row| (row.class, row.confidence))
            .collect()
    }

    fn bytes(texts: &[&str]) -> TensorData {
        TensorData::Bytes(texts.iter().map(|text| text.as_bytes().to_vec()).collect())
    }

    #[test]
    fn the_label_names_the_class_and_the_highest_score_says_how_sure() {
        let scores = tensor(&[2, 2], TensorData::Fp32(vec![0.25, 0.75, 0.5, 0.5]));
        let labels = tensor(&[2], TensorData::Int64(vec![7, -1]));
        assert_eq!(
            rows(&[scores.clone(), labels]),
            [
                (Some(Class::Number(7)), Some(0.75)),
                (Some(Class::Number(-1)), Some(0.5)),
            ]
        );
        assert_eq!(
            rows(&[scores]),
            [
                (Some(Class::Number(1)), Some(0.75)),
                (Some(Class::Number(0)), Some(0.5)),
            ]
        );
    }

    #[test]
    fn texts_and_truths_are_classes_and_digits_are_numbers() {
        let texts = tensor(&[4, 1], bytes(&["spam", "3", "03", "-0"]));
        let texts = [texts];
        let classes: Vec<_> = rows(&texts).into_iter().map(|row| row.0).collect();
        assert_eq!(
            classes,
            [
                Some(Class::Text("spam")),
                Some(Class::Number(3)),
                Some(Class::Text("03")),
                Some(Class::Text("-0")),
            ]
        );
        let truths = tensor(&[2], TensorData::Bool(vec![true, false]));
        assert_eq!(
            rows(&[truths]),
            [
                (Some(Class::Text("true")), None),
                (Some(Class::Text("false")), None)
            ]
        );
        assert_eq!(Class::of_text("-12"), Class::Number(-12));
        let huge = "99999999999999999999";
        assert_eq!(Class::of_text(huge), Class::Text(huge));
    }

    #[test]
    fn what_names_no_class_says_nothing() {
        assert!(rows(&[tensor(&[3, 1], TensorData::Fp64(vec![1.0, 2.0, 3.0]))]).is_empty());
        assert!(rows(&[tensor(&[2], TensorData::Fp32(vec![1.0, 2.0]))]).is_empty());
        assert!(rows(&[]).is_empty());
        // Logits name a class; how sure they are cannot be read from them.
        let logits = tensor(&[2, 2], TensorData::Fp64(vec![-3.0, 8.0, f64::NAN, 1.0]));
        assert_eq!(
            rows(&[logits]),
            [(Some(Class::Number(1)), None), (None, None)]
        );
        let long = "x".repeat(TAG_BYTES_MAX + 1);
        let written = tensor(&[2], bytes(&[&long, ""]));
        assert_eq!(rows(&[written]), [(None, None), (None, None)]);
        let not_utf8 = tensor(&[1], TensorData::Bytes(vec![vec![0xff]]));
        assert_eq!(rows(&[not_utf8]), [(None, None)]);
    }

    #[test]
    fn an_output_of_another_length_than_the_scores_is_no_label() {
        let scores = tensor(&[1, 2], TensorData::Fp32(vec![0.9, 0.1]));
        let counts = tensor(&[3], TensorData::Int32(vec![4, 5, 6]));
        assert_eq!(
            rows(&[counts, scores]),
            [(Some(Class::Number(0)), Some(0.9))]
        );
    }
}

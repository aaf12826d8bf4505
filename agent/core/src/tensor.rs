//! Tensors as requests carry them and engines take them. Row-major.

use rollcall_shared::manifest::DataType;

/// A named tensor. The product of `shape` is the number of elements in `data`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name in the model's signature.
    pub name: String,
    /// Its shape; no negative or symbolic dimension.
    pub shape: Vec<usize>,
    /// Its elements.
    pub data: TensorData,
}

/// Product of a shape; `None` when it overflows.
#[must_use]
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1_usize, |product, dim| product.checked_mul(*dim))
}

/// A number of elements or bytes for people; `None`: it overflowed.
#[must_use]
pub fn needed(count: Option<usize>) -> String {
    count.map_or_else(|| "more than there can be".to_owned(), |n| n.to_string())
}

/// Elements of a tensor, by type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum TensorData {
    Bool(Vec<bool>),
    Uint8(Vec<u8>),
    Uint16(Vec<u16>),
    Uint32(Vec<u32>),
    Uint64(Vec<u64>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Fp32(Vec<f32>),
    Fp64(Vec<f64>),
    Bytes(Vec<Vec<u8>>),
}

/// The same for whatever the elements are.
macro_rules! each {
    ($data:expr, $v:ident => $line:expr) => {
        match $data {
            TensorData::Bool($v) => $line,
            TensorData::Uint8($v) => $line,
            TensorData::Uint16($v) => $line,
            TensorData::Uint32($v) => $line,
            TensorData::Uint64($v) => $line,
            TensorData::Int8($v) => $line,
            TensorData::Int16($v) => $line,
            TensorData::Int32($v) => $line,
            TensorData::Int64($v) => $line,
            TensorData::Fp32($v) => $line,
            TensorData::Fp64($v) => $line,
            TensorData::Bytes($v) => $line,
        }
    };
}

impl Tensor {
    /// Length of the first dimension; of a scalar 1.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Puts the rows of `more` under these. `false`, and nothing is changed: its rows have
    /// another shape or type, or there are no rows.
    #[must_use]
    pub fn append_rows(&mut self, more: &Self) -> bool {
        let (Some((_, row)), Some((more_rows, more_row))) =
            (self.shape.split_first(), more.shape.split_first())
        else {
            return false;
        };
        if row != more_row || !self.data.extend(&more.data) {
            return false;
        }
        self.shape[0] += more_rows;
        true
    }

    /// Takes the last `rows` rows off. `None`, and nothing is changed: there are not as many.
    #[must_use]
    pub fn take_last_rows(&mut self, rows: usize) -> Option<Self> {
        let (have, row) = self.shape.split_first()?;
        let left = have.checked_sub(rows)?;
        let at = left * row.iter().product::<usize>();
        let shape = [&[rows], row].concat();
        self.shape[0] = left;
        Some(Self {
            name: self.name.clone(),
            shape,
            data: self.data.split_off(at),
        })
    }
}

impl TensorData {
    /// Puts elements of the same type behind these. `false`: they are of another.
    #[must_use]
    pub fn extend(&mut self, more: &Self) -> bool {
        match (self, more) {
            (Self::Bool(all), Self::Bool(more)) => all.extend_from_slice(more),
            (Self::Uint8(all), Self::Uint8(more)) => all.extend_from_slice(more),
            (Self::Uint16(all), Self::Uint16(more)) => all.extend_from_slice(more),
            (Self::Uint32(all), Self::Uint32(more)) => all.extend_from_slice(more),
            (Self::Uint64(all), Self::Uint64(more)) => all.extend_from_slice(more),
            (Self::Int8(all), Self::Int8(more)) => all.extend_from_slice(more),
            (Self::Int16(all), Self::Int16(more)) => all.extend_from_slice(more),
            (Self::Int32(all), Self::Int32(more)) => all.extend_from_slice(more),
            (Self::Int64(all), Self::Int64(more)) => all.extend_from_slice(more),
            (Self::Fp32(all), Self::Fp32(more)) => all.extend_from_slice(more),
            (Self::Fp64(all), Self::Fp64(more)) => all.extend_from_slice(more),
            (Self::Bytes(all), Self::Bytes(more)) => all.extend_from_slice(more),
            _ => return false,
        }
        true
    }

    fn split_off(&mut self, at: usize) -> Self {
        match self {
            Self::Bool(v) => Self::Bool(v.split_off(at)),
            Self::Uint8(v) => Self::Uint8(v.split_off(at)),
            Self::Uint16(v) => Self::Uint16(v.split_off(at)),
            Self::Uint32(v) => Self::Uint32(v.split_off(at)),
            Self::Uint64(v) => Self::Uint64(v.split_off(at)),
            Self::Int8(v) => Self::Int8(v.split_off(at)),
            Self::Int16(v) => Self::Int16(v.split_off(at)),
            Self::Int32(v) => Self::Int32(v.split_off(at)),
            Self::Int64(v) => Self::Int64(v.split_off(at)),
            Self::Fp32(v) => Self::Fp32(v.split_off(at)),
            Self::Fp64(v) => Self::Fp64(v.split_off(at)),
            Self::Bytes(v) => Self::Bytes(v.split_off(at)),
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        each!(self, v => v.len())
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An element as a number; truth is 1. `None`: there is none, or it is a text.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "beyond 2^53 a bin is as good")]
    pub fn number(&self, index: usize) -> Option<f64> {
        match self {
            Self::Bool(v) => v.get(index).map(|x| f64::from(u8::from(*x))),
            Self::Uint8(v) => v.get(index).map(|x| f64::from(*x)),
            Self::Uint16(v) => v.get(index).map(|x| f64::from(*x)),
            Self::Uint32(v) => v.get(index).map(|x| f64::from(*x)),
            Self::Uint64(v) => v.get(index).map(|x| *x as f64),
            Self::Int8(v) => v.get(index).map(|x| f64::from(*x)),
            Self::Int16(v) => v.get(index).map(|x| f64::from(*x)),
            Self::Int32(v) => v.get(index).map(|x| f64::from(*x)),
            Self::Int64(v) => v.get(index).map(|x| *x as f64),
            Self::Fp32(v) => v.get(index).map(|x| f64::from(*x)),
            Self::Fp64(v) => v.get(index).copied(),
            Self::Bytes(_) => None,
        }
    }

    /// The element type.
    #[must_use]
    pub const fn datatype(&self) -> DataType {
        match self {
            Self::Bool(_) => DataType::Bool,
            Self::Uint8(_) => DataType::Uint8,
            Self::Uint16(_) => DataType::Uint16,
            Self::Uint32(_) => DataType::Uint32,
            Self::Uint64(_) => DataType::Uint64,
            Self::Int8(_) => DataType::Int8,
            Self::Int16(_) => DataType::Int16,
            Self::Int32(_) => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
            Self::Fp32(_) => DataType::Fp32,
            Self::Fp64(_) => DataType::Fp64,
            Self::Bytes(_) => DataType::Bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], data: TensorData) -> Tensor {
        Tensor {
            name: "x".to_owned(),
            shape: shape.to_vec(),
            data,
        }
    }

    #[test]
    fn rows_that_were_put_together_come_apart_again() {
        let first = tensor(&[1, 2], TensorData::Fp32(vec![1.0, 2.0]));
        let second = tensor(&[2, 2], TensorData::Fp32(vec![3.0, 4.0, 5.0, 6.0]));
        let mut all = first.clone();
        assert!(all.append_rows(&second));
        assert_eq!((all.rows(), all.data.len()), (3, 6));
        assert_eq!(all.take_last_rows(2), Some(second));
        assert_eq!(all.take_last_rows(2), None);
        assert_eq!(all.take_last_rows(1), Some(first));
        assert_eq!((all.rows(), all.data.len()), (0, 0));
    }

    #[test]
    fn rows_of_another_shape_or_type_and_scalars_stay_apart() {
        let mut all = tensor(&[1, 2], TensorData::Int8(vec![1, 2]));
        for other in [
            tensor(&[1, 3], TensorData::Int8(vec![1, 2, 3])),
            tensor(&[1, 2], TensorData::Uint8(vec![1, 2])),
            tensor(&[], TensorData::Int8(vec![1])),
        ] {
            assert!(!all.append_rows(&other), "{other:?}");
        }
        assert_eq!(all, tensor(&[1, 2], TensorData::Int8(vec![1, 2])));
        assert_eq!(
            tensor(&[], TensorData::Bool(vec![true])).take_last_rows(1),
            None
        );
    }
}

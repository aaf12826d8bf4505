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

impl TensorData {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Bool(v) => v.len(),
            Self::Uint8(v) => v.len(),
            Self::Uint16(v) => v.len(),
            Self::Uint32(v) => v.len(),
            Self::Uint64(v) => v.len(),
            Self::Int8(v) => v.len(),
            Self::Int16(v) => v.len(),
            Self::Int32(v) => v.len(),
            Self::Int64(v) => v.len(),
            Self::Fp32(v) => v.len(),
            Self::Fp64(v) => v.len(),
            Self::Bytes(v) => v.len(),
        }
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

//! The numbers of `data`: one reader for flat and nested arrays of any type.

use std::fmt;

use rollcall_shared::manifest::DataType;
use serde::de::{DeserializeSeed, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::RANK_MAX;
use crate::tensor::TensorData;

/// What one element of JSON can be.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(v) => v.fmt(f),
            Self::Unsigned(v) => v.fmt(f),
            Self::Signed(v) => v.fmt(f),
            Self::Float(v) => v.fmt(f),
            Self::Text(v) => write!(f, "{:?}", v.chars().take(40).collect::<String>()),
        }
    }
}

/// A type that elements can be read as.
pub(super) trait Element: Sized {
    /// `None`: the scalar is of another kind or out of range.
    fn of(scalar: &Scalar<'_>) -> Option<Self>;
}

impl Element for bool {
    fn of(scalar: &Scalar<'_>) -> Option<Self> {
        match scalar {
            Scalar::Bool(v) => Some(*v),
            Scalar::Unsigned(0) => Some(false),
            Scalar::Unsigned(1) => Some(true),
            Scalar::Unsigned(_) | Scalar::Signed(_) | Scalar::Float(_) | Scalar::Text(_) => None,
        }
    }
}

macro_rules! integer {
    ($($type:ty)*) => {$(
        impl Element for $type {
            fn of(scalar: &Scalar<'_>) -> Option<Self> {
                match scalar {
                    Scalar::Unsigned(v) => (*v).try_into().ok(),
                    Scalar::Signed(v) => (*v).try_into().ok(),
                    Scalar::Bool(_) | Scalar::Float(_) | Scalar::Text(_) => None,
                }
            }
        }
    )*};
}
integer!(u8 u16 u32 u64 i8 i16 i32 i64);

impl Element for f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "that is what writing 2^60 as a float means"
    )]
    fn of(scalar: &Scalar<'_>) -> Option<Self> {
        match scalar {
            Scalar::Unsigned(v) => Some(*v as f64),
            Scalar::Signed(v) => Some(*v as f64),
            Scalar::Float(v) => Some(*v),
            Scalar::Bool(_) | Scalar::Text(_) => None,
        }
    }
}

impl Element for f32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounds; what overflows is refused"
    )]
    fn of(scalar: &Scalar<'_>) -> Option<Self> {
        f64::of(scalar)
            .map(|wide| wide as f32)
            .filter(|narrow| narrow.is_finite())
    }
}

impl Element for Vec<u8> {
    fn of(scalar: &Scalar<'_>) -> Option<Self> {
        match scalar {
            Scalar::Text(v) => Some(v.as_bytes().to_vec()),
            Scalar::Bool(_) | Scalar::Unsigned(_) | Scalar::Signed(_) | Scalar::Float(_) => None,
        }
    }
}

/// An element whose type is not known yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum AnyElement {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Box<str>),
}

pub(super) type Loose = Vec<AnyElement>;

impl Element for AnyElement {
    fn of(scalar: &Scalar<'_>) -> Option<Self> {
        Some(match scalar {
            Scalar::Bool(v) => Self::Bool(*v),
            Scalar::Unsigned(v) => Self::Unsigned(*v),
            Scalar::Signed(v) => Self::Signed(*v),
            Scalar::Float(v) => Self::Float(*v),
            Scalar::Text(v) => Self::Text((*v).into()),
        })
    }
}

impl AnyElement {
    fn scalar(&self) -> Scalar<'_> {
        match self {
            Self::Bool(v) => Scalar::Bool(*v),
            Self::Unsigned(v) => Scalar::Unsigned(*v),
            Self::Signed(v) => Scalar::Signed(*v),
            Self::Float(v) => Scalar::Float(*v),
            Self::Text(v) => Scalar::Text(v),
        }
    }
}

/// Elements as they were read, and how they were nested.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Read<T> {
    data: T,
    /// Length of the arrays at each depth, from the outermost; one entry: flat.
    lengths: Vec<usize>,
}

impl Read<TensorData> {
    /// The elements, where they were flat or nested as `shape` says.
    pub(super) fn of_shape<E: Error>(self, name: &str, shape: &[usize]) -> Result<TensorData, E> {
        // Arrays below an empty one were never seen.
        let nested = self.lengths.len() > 1 && !self.lengths.contains(&0);
        if nested && self.lengths != shape {
            return Err(E::custom(format!(
                "the data of tensor {name:?} is nested as {:?}, its shape is {shape:?}",
                self.lengths
            )));
        }
        Ok(self.data)
    }
}

impl Read<Loose> {
    /// Gives the elements their type.
    pub(super) fn into_typed<E: Error>(self, datatype: DataType) -> Result<Read<TensorData>, E> {
        fn all<T: Element, E: Error>(data: &Loose, datatype: DataType) -> Result<Vec<T>, E> {
            let typed = |(position, element): (usize, &AnyElement)| {
                T::of(&element.scalar())
                    .ok_or_else(|| misfit(position, &element.scalar(), datatype))
            };
            data.iter().enumerate().map(typed).collect()
        }
        let (data, lengths) = (&self.data, self.lengths);
        let data = match datatype {
            DataType::Bool => TensorData::Bool(all(data, datatype)?),
            DataType::Uint8 => TensorData::Uint8(all(data, datatype)?),
            DataType::Uint16 => TensorData::Uint16(all(data, datatype)?),
            DataType::Uint32 => TensorData::Uint32(all(data, datatype)?),
            DataType::Uint64 => TensorData::Uint64(all(data, datatype)?),
            DataType::Int8 => TensorData::Int8(all(data, datatype)?),
            DataType::Int16 => TensorData::Int16(all(data, datatype)?),
            DataType::Int32 => TensorData::Int32(all(data, datatype)?),
            DataType::Int64 => TensorData::Int64(all(data, datatype)?),
            DataType::Fp32 => TensorData::Fp32(all(data, datatype)?),
            DataType::Fp64 => TensorData::Fp64(all(data, datatype)?),
            DataType::Bytes => TensorData::Bytes(all(data, datatype)?),
            DataType::Fp16 => return Err(no_half_floats()),
        };
        Ok(Read { data, lengths })
    }
}

fn misfit<E: Error>(position: usize, scalar: &Scalar<'_>, datatype: DataType) -> E {
    E::custom(format!(
        "element {position} of the data is {scalar}, which is no {datatype}"
    ))
}

fn no_half_floats<E: Error>() -> E {
    E::custom("FP16 has no JSON form here: send FP32")
}

/// Elements of a known type.
pub(super) struct Typed {
    pub(super) datatype: DataType,
    /// How many there may be; only room is made for them.
    pub(super) expected: usize,
}

impl<'de> DeserializeSeed<'de> for Typed {
    type Value = Read<TensorData>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        macro_rules! read {
            ($variant:ident) => {{
                let Read { data, lengths } =
                    read(Some(self.datatype), self.expected, deserializer)?;
                Ok(Read {
                    data: TensorData::$variant(data),
                    lengths,
                })
            }};
        }
        match self.datatype {
            DataType::Bool => read!(Bool),
            DataType::Uint8 => read!(Uint8),
            DataType::Uint16 => read!(Uint16),
            DataType::Uint32 => read!(Uint32),
            DataType::Uint64 => read!(Uint64),
            DataType::Int8 => read!(Int8),
            DataType::Int16 => read!(Int16),
            DataType::Int32 => read!(Int32),
            DataType::Int64 => read!(Int64),
            DataType::Fp32 => read!(Fp32),
            DataType::Fp64 => read!(Fp64),
            DataType::Bytes => read!(Bytes),
            DataType::Fp16 => Err(no_half_floats()),
        }
    }
}

impl<'de> Deserialize<'de> for Read<Loose> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(None, 0, deserializer)
    }
}

fn read<'de, T: Element, D: Deserializer<'de>>(
    datatype: Option<DataType>,
    expected: usize,
    deserializer: D,
) -> Result<Read<Vec<T>>, D::Error> {
    let mut out = Out {
        data: Vec::with_capacity(expected),
        lengths: Vec::new(),
        leaf: None,
    };
    deserializer.deserialize_seq(Level {
        depth: 0,
        datatype,
        out: &mut out,
    })?;
    Ok(Read {
        data: out.data,
        lengths: out.lengths.into_iter().flatten().collect(),
    })
}

struct Out<T> {
    data: Vec<T>,
    /// By depth; `None`: an array of that depth is open and none was closed yet.
    lengths: Vec<Option<usize>>,
    /// The depth at which elements lie.
    leaf: Option<usize>,
}

/// Reads one value: an element, or an array of such values.
struct Level<'a, T> {
    /// How many arrays are around it.
    depth: usize,
    datatype: Option<DataType>,
    out: &'a mut Out<T>,
}

impl<T: Element> Level<'_, T> {
    fn element<E: Error>(self, scalar: &Scalar<'_>) -> Result<(), E> {
        let position = self.out.data.len();
        if *self.out.leaf.get_or_insert(self.depth) != self.depth {
            return Err(E::custom(format!(
                "element {position} of the data is nested otherwise than those before it"
            )));
        }
        let element = T::of(scalar).ok_or_else(|| {
            self.datatype.map_or_else(
                || {
                    E::custom(format!(
                        "element {position} of the data is no number or text"
                    ))
                },
                |datatype| misfit(position, scalar, datatype),
            )
        })?;
        self.out.data.push(element);
        Ok(())
    }
}

impl<'de, T: Element> DeserializeSeed<'de> for Level<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Element> Visitor<'de> for Level<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let position = self.out.data.len();
        match self.datatype {
            Some(datatype) => write!(f, "{datatype} as element {position} of the data"),
            None => write!(
                f,
                "a number, text or array as element {position} of the data"
            ),
        }
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<(), E> {
        self.element(&Scalar::Bool(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<(), E> {
        self.element(&Scalar::Unsigned(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<(), E> {
        self.element(&Scalar::Signed(v))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<(), E> {
        self.element(&Scalar::Float(v))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<(), E> {
        self.element(&Scalar::Text(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self {
            depth,
            datatype,
            out,
        } = self;
        if depth >= RANK_MAX {
            return Err(A::Error::custom(format!(
                "the data is nested over {RANK_MAX} deep"
            )));
        }
        if out.lengths.len() == depth {
            out.lengths.push(None);
        }
        let mut length = 0;
        while seq
            .next_element_seed(Level {
                depth: depth + 1,
                datatype,
                out: &mut *out,
            })?
            .is_some()
        {
            length += 1;
        }
        match *out.lengths[depth].get_or_insert(length) {
            expected if expected == length => Ok(()),
            expected => Err(A::Error::custom(format!(
                "an array that ends before element {} of the data has {length} entries, one before it {expected}",
                out.data.len()
            ))),
        }
    }
}

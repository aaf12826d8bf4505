//! Tensors as Open Inference Protocol JSON:
//! `{"name":"input","datatype":"FP32","shape":[1,64],"data":[...]}`.
//!
//! Read in one pass: where `datatype` comes before `data`, as every client writes it,
//! numbers go straight into a vector of their type, without a document tree. Where it
//! comes after, `data` is kept in a general form until the type is known. `data` may be
//! flat or nested; nested data must have the declared shape. Errors say which element.

mod elements;

use std::fmt;

use rollcall_shared::manifest::DataType;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::tensor::{Tensor, TensorData, element_count};
use elements::{Loose, Read, Typed};

/// Dimensions of a tensor. More: refused; no model has them.
pub const RANK_MAX: usize = 16;

/// What a tensor says beside its elements. What we do not know is passed over.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TensorParameters {
    /// The elements follow the JSON as so many bytes (binary tensor extension).
    pub binary_data_size: Option<usize>,
    /// Of a requested output: whether its elements should come as bytes.
    pub binary_data: Option<bool>,
    /// The elements lie in memory that client and server share, which we have none of.
    pub shared_memory_region: Option<IgnoredAny>,
    /// Of a requested output: the best so many classes instead of the numbers, which we
    /// do not do.
    pub classification: Option<IgnoredAny>,
}

/// A tensor of a request, whose elements may come elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub datatype: DataType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, of type `datatype`; `None`: there was no `data`.
    pub data: Option<TensorData>,
    /// Its parameters.
    pub parameters: TensorParameters,
}

/// A tensor whose elements do not come together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonTensorError {
    /// There is no `data`.
    #[error("tensor {name:?} has no data")]
    NoData {
        /// Which tensor.
        name: String,
    },
    /// `data` and `shape` disagree.
    #[error("tensor {name:?} has {got} elements: its shape {shape:?} says otherwise")]
    Elements {
        /// Which tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How many elements came.
        got: usize,
    },
}

impl JsonTensor {
    /// The tensor, where all of it was in the JSON.
    ///
    /// # Errors
    /// When there are no elements, or not as many as the shape says.
    pub fn into_tensor(self) -> Result<Tensor, JsonTensorError> {
        let Self {
            name, shape, data, ..
        } = self;
        let Some(data) = data else {
            return Err(JsonTensorError::NoData { name });
        };
        if element_count(&shape) != Some(data.len()) {
            return Err(JsonTensorError::Elements {
                name,
                shape,
                got: data.len(),
            });
        }
        Ok(Tensor { name, shape, data })
    }
}

/// A tensor that is complete in its JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct WholeTensor(pub Tensor);

impl<'de> Deserialize<'de> for WholeTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tensor = JsonTensor::deserialize(deserializer)?;
        tensor.into_tensor().map(Self).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for JsonTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TensorVisitor)
    }
}

struct TensorVisitor;

impl<'de> Visitor<'de> for TensorVisitor {
    type Value = JsonTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor: {\"name\", \"datatype\", \"shape\", \"data\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonTensor, A::Error> {
        let mut name: Option<String> = None;
        let mut datatype: Option<DataType> = None;
        let mut shape: Option<Vec<usize>> = None;
        let mut typed: Option<Read<TensorData>> = None;
        let mut loose: Option<Read<Loose>> = None;
        let mut parameters = TensorParameters::default();
        while let Some(key) = map.next_key::<Key>()? {
            let twice = match key {
                Key::Name => name.replace(map.next_value()?).is_some(),
                Key::Datatype => datatype.replace(map.next_value()?).is_some(),
                Key::Shape => shape.replace(map.next_value()?).is_some(),
                Key::Data if typed.is_some() || loose.is_some() => true,
                Key::Data => match datatype {
                    Some(datatype) => {
                        let seed = Typed {
                            datatype,
                            expected: expected(shape.as_deref()),
                        };
                        typed.replace(map.next_value_seed(seed)?).is_some()
                    }
                    None => loose.replace(map.next_value()?).is_some(),
                },
                Key::Parameters => {
                    parameters = map.next_value::<Option<_>>()?.unwrap_or_default();
                    false
                }
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                return Err(A::Error::custom("a field of a tensor comes twice"));
            }
        }
        let name = name.ok_or_else(|| A::Error::missing_field("name"))?;
        let missing = |field: &str| A::Error::custom(format!("tensor {name:?} has no {field}"));
        let datatype = datatype.ok_or_else(|| missing("datatype"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        if shape.len() > RANK_MAX {
            return Err(A::Error::custom(format!(
                "tensor {name:?} has {} dimensions, more than {RANK_MAX}",
                shape.len()
            )));
        }
        let read = match (typed, loose) {
            (Some(read), _) => Some(read),
            (None, Some(loose)) => Some(loose.into_typed(datatype)?),
            (None, None) => None,
        };
        let data = read.map(|read| read.of_shape(&name, &shape)).transpose()?;
        Ok(JsonTensor {
            name,
            datatype,
            shape,
            data,
            parameters,
        })
    }
}

/// How many elements to expect, within reason: a shape alone must not reserve memory
/// that its sender never fills.
fn expected(shape: Option<&[usize]>) -> usize {
    const RESERVE_MAX: usize = 64 << 10;
    shape.and_then(element_count).unwrap_or(0).min(RESERVE_MAX)
}

/// Keys of a tensor; none of them makes a string.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Name,
    Datatype,
    Shape,
    Data,
    Parameters,
    #[serde(other)]
    Other,
}

/// Writes elements as one flat array. A float that is not finite becomes `null`: JSON
/// has no word for it.
pub struct ElementsJson<'a>(pub &'a TensorData);

impl Serialize for ElementsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            TensorData::Bool(v) => v.serialize(serializer),
            TensorData::Uint8(v) => v.serialize(serializer),
            TensorData::Uint16(v) => v.serialize(serializer),
            TensorData::Uint32(v) => v.serialize(serializer),
            TensorData::Uint64(v) => v.serialize(serializer),
            TensorData::Int8(v) => v.serialize(serializer),
            TensorData::Int16(v) => v.serialize(serializer),
            TensorData::Int32(v) => v.serialize(serializer),
            TensorData::Int64(v) => v.serialize(serializer),
            TensorData::Fp32(v) => v.serialize(serializer),
            TensorData::Fp64(v) => v.serialize(serializer),
            TensorData::Bytes(v) => {
                let mut seq = serializer.serialize_seq(Some(v.len()))?;
                for element in v {
                    seq.serialize_element(&String::from_utf8_lossy(element))?;
                }
                seq.end()
            }
        }
    }
}

#[cfg(test)]
mod tests;

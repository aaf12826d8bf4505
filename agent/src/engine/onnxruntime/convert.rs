//! Tensors between the agent's form and onnxruntime's. Inputs are lent, outputs copied.

use ort::session::SessionInputValue;
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef, ValueType};
use rollcall_agent_core::tensor::{Tensor, TensorData};
use rollcall_shared::manifest::{DataType, TensorSpec};

use super::super::graph::{FoundTensor, FoundType};
use super::InferError;
use super::cut;

/// What the library says of an input or output.
pub(super) fn found(value: &ValueType) -> FoundTensor {
    let ValueType::Tensor { ty, shape, .. } = value else {
        let datatype = FoundType::Other(format!("no tensor but {value}"));
        return FoundTensor {
            datatype,
            dims: None,
        };
    };
    // It says "no dimensions" of scalars and of tensors of any rank.
    let dims = (!shape.is_empty()).then(|| shape.to_vec());
    FoundTensor {
        datatype: found_type(*ty),
        dims,
    }
}

fn found_type(found: TensorElementType) -> FoundType {
    FoundType::Known(match found {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        TensorElementType::Undefined => return FoundType::Open,
        other => return FoundType::Other(other.to_string()),
    })
}

/// Lends a tensor to the library; texts are copied.
pub(super) fn to_ort(tensor: &Tensor) -> Result<SessionInputValue<'_>, InferError> {
    let shape = tensor.shape.as_slice();
    let made = match &tensor.data {
        TensorData::Bool(v) => lend(shape, v),
        TensorData::Uint8(v) => lend(shape, v),
        TensorData::Uint16(v) => lend(shape, v),
        TensorData::Uint32(v) => lend(shape, v),
        TensorData::Uint64(v) => lend(shape, v),
        TensorData::Int8(v) => lend(shape, v),
        TensorData::Int16(v) => lend(shape, v),
        TensorData::Int32(v) => lend(shape, v),
        TensorData::Int64(v) => lend(shape, v),
        TensorData::Fp32(v) => lend(shape, v),
        TensorData::Fp64(v) => lend(shape, v),
        TensorData::Bytes(v) => texts(shape, v),
    };
    made.map_err(|why| InferError::Input {
        name: tensor.name.clone(),
        why: cut(why),
    })
}

fn lend<'a, T>(shape: &[usize], elements: &'a [T]) -> Result<SessionInputValue<'a>, String>
where
    T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
{
    let view = TensorRef::from_array_view((shape.to_vec(), elements));
    view.map(Into::into).map_err(|error| error.to_string())
}

fn texts(shape: &[usize], elements: &[Vec<u8>]) -> Result<SessionInputValue<'static>, String> {
    let texts: Vec<String> = elements
        .iter()
        .map(|bytes| String::from_utf8(bytes.clone()))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let made = ort::value::Tensor::from_string_array((shape.to_vec(), texts.as_slice()));
    made.map(Into::into).map_err(|error| error.to_string())
}

/// Copies an output out of the library.
pub(super) fn from_ort(spec: &TensorSpec, value: &DynValue) -> Result<Tensor, InferError> {
    let (shape, data) = elements(spec.datatype, value).map_err(|why| InferError::Output {
        name: spec.name.clone(),
        why: cut(why),
    })?;
    Ok(Tensor {
        name: spec.name.clone(),
        shape,
        data,
    })
}

fn elements(datatype: DataType, value: &DynValue) -> Result<(Vec<usize>, TensorData), String> {
    fn copied<T>(
        value: &DynValue,
        to: impl Fn(Vec<T>) -> TensorData,
    ) -> Result<(Vec<usize>, TensorData), String>
    where
        T: PrimitiveTensorElementType + Clone,
    {
        let (shape, elements) = value
            .try_extract_tensor::<T>()
            .map_err(|error| error.to_string())?;
        Ok((sizes(shape)?, to(elements.to_vec())))
    }
    match datatype {
        DataType::Bool => copied(value, TensorData::Bool),
        DataType::Uint8 => copied(value, TensorData::Uint8),
        DataType::Uint16 => copied(value, TensorData::Uint16),
        DataType::Uint32 => copied(value, TensorData::Uint32),
        DataType::Uint64 => copied(value, TensorData::Uint64),
        DataType::Int8 => copied(value, TensorData::Int8),
        DataType::Int16 => copied(value, TensorData::Int16),
        DataType::Int32 => copied(value, TensorData::Int32),
        DataType::Int64 => copied(value, TensorData::Int64),
        DataType::Fp32 | DataType::Fp16 => copied(value, TensorData::Fp32),
        DataType::Fp64 => copied(value, TensorData::Fp64),
        DataType::Bytes => {
            let (shape, texts) = value
                .try_extract_strings()
                .map_err(|error| error.to_string())?;
            let texts = texts.into_iter().map(String::into_bytes).collect();
            Ok((sizes(shape)?, TensorData::Bytes(texts)))
        }
    }
}

fn sizes(shape: &[i64]) -> Result<Vec<usize>, String> {
    let sizes = shape.iter().map(|dim| usize::try_from(*dim));
    sizes
        .collect::<Result<_, _>>()
        .map_err(|_| format!("it has the shape {shape:?}"))
}

//! Tensors between the agent's form and tract's.

use rollcall_agent_core::tensor::{Tensor, TensorData};
use rollcall_shared::manifest::{DataType, TensorSpec};
use tract_onnx::prelude::tract_ndarray::{ArrayD, IxDyn};
use tract_onnx::prelude::{Datum, DatumType, IntoTValue, TValue, TractResult};
use tract_onnx::tract_hir::internal::TDim;

use super::{EngineError, FoundType, InferError};

type TractTensor = tract_onnx::prelude::Tensor;

/// tract's name of an element type.
///
/// # Errors
/// For half precision, which requests cannot carry.
pub(super) fn to_datum_type(spec: &TensorSpec) -> Result<DatumType, EngineError> {
    Ok(match spec.datatype {
        DataType::Bool => DatumType::Bool,
        DataType::Uint8 => DatumType::U8,
        DataType::Uint16 => DatumType::U16,
        DataType::Uint32 => DatumType::U32,
        DataType::Uint64 => DatumType::U64,
        DataType::Int8 => DatumType::I8,
        DataType::Int16 => DatumType::I16,
        DataType::Int32 => DatumType::I32,
        DataType::Int64 => DatumType::I64,
        DataType::Fp32 => DatumType::F32,
        DataType::Fp64 => DatumType::F64,
        DataType::Bytes => DatumType::String,
        datatype @ DataType::Fp16 => {
            let name = spec.name.clone();
            return Err(EngineError::UnsupportedDataType { name, datatype });
        }
    })
}

/// tract's element type by our name. Integers that tract knows to be shapes are in a
/// type of their own there.
pub(super) fn found_type(found: DatumType) -> FoundType {
    FoundType::Known(match found {
        DatumType::Bool => DataType::Bool,
        DatumType::U8 => DataType::Uint8,
        DatumType::U16 => DataType::Uint16,
        DatumType::U32 => DataType::Uint32,
        DatumType::U64 => DataType::Uint64,
        DatumType::I8 => DataType::Int8,
        DatumType::I16 => DataType::Int16,
        DatumType::I32 => DataType::Int32,
        DatumType::I64 | DatumType::TDim => DataType::Int64,
        DatumType::F16 => DataType::Fp16,
        DatumType::F32 => DataType::Fp32,
        DatumType::F64 => DataType::Fp64,
        DatumType::String => DataType::Bytes,
        other => return FoundType::Other(format!("{other:?}")),
    })
}

/// Copies a tensor into tract's form.
pub(super) fn to_tract(tensor: &Tensor) -> Result<TValue, InferError> {
    let shape = tensor.shape.as_slice();
    let made = match &tensor.data {
        TensorData::Bool(v) => TractTensor::from_shape(shape, v),
        TensorData::Uint8(v) => TractTensor::from_shape(shape, v),
        TensorData::Uint16(v) => TractTensor::from_shape(shape, v),
        TensorData::Uint32(v) => TractTensor::from_shape(shape, v),
        TensorData::Uint64(v) => TractTensor::from_shape(shape, v),
        TensorData::Int8(v) => TractTensor::from_shape(shape, v),
        TensorData::Int16(v) => TractTensor::from_shape(shape, v),
        TensorData::Int32(v) => TractTensor::from_shape(shape, v),
        TensorData::Int64(v) => TractTensor::from_shape(shape, v),
        TensorData::Fp32(v) => TractTensor::from_shape(shape, v),
        TensorData::Fp64(v) => TractTensor::from_shape(shape, v),
        TensorData::Bytes(v) => strings(shape, v),
    };
    made.map(IntoTValue::into_tvalue)
        .map_err(|error| InferError::Input {
            name: tensor.name.clone(),
            why: format!("{error:#}"),
        })
}

fn strings(shape: &[usize], elements: &[Vec<u8>]) -> TractResult<TractTensor> {
    let texts: Vec<String> = elements
        .iter()
        .map(|bytes| String::from_utf8(bytes.clone()))
        .collect::<Result<_, _>>()?;
    Ok(ArrayD::from_shape_vec(IxDyn(shape), texts)?.into())
}

/// Copies an output out of tract's form.
pub(super) fn from_tract(spec: &TensorSpec, value: &TValue) -> Result<Tensor, InferError> {
    let data = elements(spec.datatype, value).map_err(|error| InferError::Output {
        name: spec.name.clone(),
        why: format!("{error:#}"),
    })?;
    Ok(Tensor {
        name: spec.name.clone(),
        shape: value.shape().to_vec(),
        data,
    })
}

fn elements(datatype: DataType, value: &TractTensor) -> TractResult<TensorData> {
    fn copied<T: Datum>(value: &TractTensor) -> TractResult<Vec<T>> {
        Ok(value.try_as_plain_ram()?.as_slice::<T>()?.to_vec())
    }
    Ok(match datatype {
        DataType::Bool => TensorData::Bool(copied(value)?),
        DataType::Uint8 => TensorData::Uint8(copied(value)?),
        DataType::Uint16 => TensorData::Uint16(copied(value)?),
        DataType::Uint32 => TensorData::Uint32(copied(value)?),
        DataType::Uint64 => TensorData::Uint64(copied(value)?),
        DataType::Int8 => TensorData::Int8(copied(value)?),
        DataType::Int16 => TensorData::Int16(copied(value)?),
        DataType::Int32 => TensorData::Int32(copied(value)?),
        DataType::Int64 if value.datum_type() == TDim::datum_type() => {
            TensorData::Int64(copied(value.cast_to::<i64>()?.as_ref())?)
        }
        DataType::Int64 => TensorData::Int64(copied(value)?),
        DataType::Fp32 | DataType::Fp16 => TensorData::Fp32(copied(value)?),
        DataType::Fp64 => TensorData::Fp64(copied(value)?),
        DataType::Bytes => {
            let texts = copied::<String>(value)?;
            TensorData::Bytes(texts.into_iter().map(String::into_bytes).collect())
        }
    })
}

use rollcall_agent_core::tensor::TensorData;
use rollcall_shared::manifest::DataType;

use super::*;
use crate::engine::fixture::{load_files, signature};

fn batch(rows: usize) -> Tensor {
    Tensor {
        name: "input".to_owned(),
        shape: vec![rows, 64],
        data: TensorData::Fp32(vec![1.0; rows * 64]),
    }
}

#[test]
fn where_dimensions_cannot_be_left_open_plans_for_exact_shapes_are_made_and_a_few_kept() {
    let signature = signature(64, 10);
    let files = load_files("digits", "1.0.0");
    let source = Tract::new().parse(&files, &signature).unwrap();
    let model = TractModel::new(source, &signature).unwrap();
    model.open.set(None).unwrap();
    let shape = model.infer(&[batch(1)]).unwrap()[1].shape.clone();
    assert_eq!(shape, [1, 10]);
    for rows in (2..=20).chain([20, 3]) {
        let outputs = model.infer(&[batch(rows)]).unwrap();
        assert_eq!(outputs[1].shape, [rows, 10]);
        assert!(lock(&model.exact).len() <= EXACT_PLANS_MAX);
    }
    assert_eq!(lock(&model.exact).last().unwrap().0, [[3, 64]]);
}

#[test]
fn the_open_plan_frees_what_it_was_made_of() {
    let signature = signature(64, 10);
    let files = load_files("digits", "1.0.0");
    let source = Tract::new().parse(&files, &signature).unwrap();
    let model = TractModel::new(source, &signature).unwrap();
    model.infer(&[batch(1)]).unwrap();
    assert!(lock(&model.source).is_some());
    model.infer(&[batch(5)]).unwrap();
    model.infer(&[batch(6)]).unwrap();
    assert!(lock(&model.source).is_none());
    assert!(lock(&model.exact).is_empty());
}

#[test]
fn every_type_goes_into_tract_and_comes_back() {
    for data in [
        TensorData::Bool(vec![true, false]),
        TensorData::Uint8(vec![0, 255]),
        TensorData::Uint16(vec![0, 65_535]),
        TensorData::Uint32(vec![0, u32::MAX]),
        TensorData::Uint64(vec![0, u64::MAX]),
        TensorData::Int8(vec![-128, 127]),
        TensorData::Int16(vec![i16::MIN, i16::MAX]),
        TensorData::Int32(vec![i32::MIN, i32::MAX]),
        TensorData::Int64(vec![i64::MIN, i64::MAX]),
        TensorData::Fp32(vec![0.5, -1e30]),
        TensorData::Fp64(vec![0.5, -1e300]),
        TensorData::Bytes(vec![b"a".to_vec(), "ü".as_bytes().to_vec()]),
    ] {
        let tensor = Tensor {
            name: "x".to_owned(),
            shape: vec![2, 1],
            data,
        };
        let datatype = tensor.data.datatype();
        let spec = TensorSpec {
            name: "x".to_owned(),
            datatype,
            shape: vec![2, 1],
        };
        let value = to_tract(&tensor).unwrap();
        assert_eq!(found_type(value.datum_type()), FoundType::Known(datatype));
        assert_eq!(from_tract(&spec, &value).unwrap(), tensor);
    }
    let no_text = TensorData::Bytes(vec![vec![0xff]]);
    let tensor = Tensor {
        name: "x".to_owned(),
        shape: vec![1],
        data: no_text,
    };
    assert!(matches!(to_tract(&tensor), Err(InferError::Input { .. })));
    let half = TensorSpec {
        name: "x".to_owned(),
        datatype: DataType::Fp16,
        shape: vec![],
    };
    assert!(to_datum_type(&half).is_err());
}

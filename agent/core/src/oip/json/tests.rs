use super::*;

fn read(json: &str) -> Result<Tensor, String> {
    serde_json::from_str::<WholeTensor>(json)
        .map(|tensor| tensor.0)
        .map_err(|error| error.to_string())
}

fn refusal(json: &str) -> String {
    read(json).unwrap_err()
}

#[test]
fn flat_and_nested_data_are_the_same_tensor_wherever_the_datatype_stands() {
    let wanted = Tensor {
        name: "x".to_owned(),
        shape: vec![2, 2],
        data: TensorData::Fp32(vec![1.0, -2.0, 3.5, 4e3]),
    };
    for json in [
        r#"{"name":"x","datatype":"FP32","shape":[2,2],"data":[1,-2,3.5,4e3]}"#,
        r#"{"name":"x","datatype":"FP32","shape":[2,2],"data":[[1,-2],[3.5,4e3]]}"#,
        r#"{"data":[[1,-2],[3.5,4e3]],"shape":[2,2],"datatype":"FP32","name":"x"}"#,
        r#"{"data":[1,-2,3.5,4e3],"shape":[2,2],"parameters":{"a":[1]},"more":{},"datatype":"FP32","name":"x"}"#,
    ] {
        assert_eq!(read(json).as_ref(), Ok(&wanted), "{json}");
    }
}

#[test]
fn every_datatype_reads_and_writes_back() {
    for (datatype, data) in [
        ("BOOL", "[true,false]"),
        ("UINT8", "[0,255]"),
        ("UINT16", "[0,65535]"),
        ("UINT32", "[0,4294967295]"),
        ("UINT64", "[0,18446744073709551615]"),
        ("INT8", "[-128,127]"),
        ("INT16", "[-32768,32767]"),
        ("INT32", "[-2147483648,2147483647]"),
        ("INT64", "[-9223372036854775808,9223372036854775807]"),
        ("FP32", "[0.1,-1e-10]"),
        ("FP64", "[0.1,-1e-300]"),
        ("BYTES", r#"["a","\"ü"]"#),
    ] {
        let json = format!(r#"{{"name":"x","datatype":"{datatype}","shape":[2],"data":{data}}}"#);
        let late = format!(r#"{{"name":"x","data":{data},"shape":[2],"datatype":"{datatype}"}}"#);
        let tensor = read(&json).unwrap();
        assert_eq!(tensor.data.datatype().to_string(), datatype);
        assert_eq!(read(&late).as_ref(), Ok(&tensor));
        let written = serde_json::to_string(&ElementsJson(&tensor.data)).unwrap();
        let written = json.replace(data, &written);
        assert_eq!(read(&written), Ok(tensor), "{written}");
    }
}

#[test]
fn an_element_that_does_not_fit_is_named_by_its_position() {
    for (datatype, data, wanted) in [
        (
            "INT64",
            "[1,2,1.5]",
            "element 2 of the data is 1.5, which is no INT64",
        ),
        (
            "UINT8",
            "[1,256]",
            "element 1 of the data is 256, which is no UINT8",
        ),
        (
            "UINT32",
            "[[1,2],[-3,4]]",
            "element 2 of the data is -3, which is no UINT32",
        ),
        ("FP32", "[0,1e39]", "element 1 of the data is"),
        (
            "FP32",
            r#"["1"]"#,
            "element 0 of the data is \"1\", which is no FP32",
        ),
        (
            "BOOL",
            "[2]",
            "element 0 of the data is 2, which is no BOOL",
        ),
        (
            "BYTES",
            "[1]",
            "element 0 of the data is 1, which is no BYTES",
        ),
        ("FP32", "[1,null]", "element 1 of the data"),
        ("FP32", "[1,{}]", "element 1 of the data"),
    ] {
        for json in [
            format!(r#"{{"name":"x","datatype":"{datatype}","shape":[2],"data":{data}}}"#),
            format!(r#"{{"name":"x","shape":[2],"data":{data},"datatype":"{datatype}"}}"#),
        ] {
            let refusal = refusal(&json);
            assert!(refusal.contains(wanted), "{json}: {refusal}");
        }
    }
}

#[test]
fn ragged_and_wrongly_nested_data_is_refused() {
    for (shape, data) in [
        ("[2,2]", "[[1,2],[3]]"),
        ("[2,2]", "[[1],[2,3,4]]"),
        ("[2,2]", "[1,[2,3,4]]"),
        ("[2,2]", "[[1,2],3,4]"),
        ("[2,2]", "[[1,2,3,4]]"),
        ("[4]", "[[1,2],[3,4]]"),
        ("[2,2]", "[[[1,2]],[[3,4]]]"),
        ("[2,2]", "[1,2,3]"),
        ("[2,2]", "[]"),
        ("[2,-2]", "[1,2,3,4]"),
        ("[4294967296,4294967296,4294967296]", "[1]"),
        ("[2,2]", "1"),
    ] {
        let json = format!(r#"{{"name":"x","datatype":"FP32","shape":{shape},"data":{data}}}"#);
        refusal(&json);
    }
    let deep = format!("{}1{}", "[".repeat(RANK_MAX + 1), "]".repeat(RANK_MAX + 1));
    let json = format!(r#"{{"name":"x","datatype":"FP32","shape":[1],"data":{deep}}}"#);
    assert!(refusal(&json).contains("nested"), "{}", refusal(&json));
}

#[test]
fn absent_doubled_and_unknown_fields_are_named() {
    assert!(refusal(r#"{"datatype":"FP32","shape":[1],"data":[1]}"#).contains("`name`"));
    assert!(refusal(r#"{"name":"x","shape":[1],"data":[1]}"#).contains("\"x\" has no datatype"));
    assert!(refusal(r#"{"name":"x","datatype":"FP32","data":[1]}"#).contains("has no shape"));
    assert!(refusal(r#"{"name":"x","datatype":"FP32","shape":[1]}"#).contains("has no data"));
    assert!(refusal(r#"{"name":"x","datatype":"FP99","shape":[1],"data":[1]}"#).contains("FP99"));
    assert!(refusal(r#"{"name":"x","datatype":"FP16","shape":[1],"data":[1]}"#).contains("FP32"));
    let twice = r#"{"name":"x","datatype":"FP32","shape":[1],"data":[1],"data":[2]}"#;
    assert!(refusal(twice).contains("twice"));
}

#[test]
fn a_tensor_with_binary_data_says_how_many_bytes_follow() {
    let json =
        r#"{"name":"x","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}"#;
    let tensor: JsonTensor = serde_json::from_str(json).unwrap();
    assert_eq!(tensor.data, None);
    assert_eq!(tensor.parameters.binary_data_size, Some(16));
}

#[test]
fn a_huge_shape_reserves_nothing() {
    let json = r#"{"name":"x","datatype":"FP64","shape":[1000000000,1000],"data":[1]}"#;
    assert!(refusal(json).contains("has 1 elements"));
}

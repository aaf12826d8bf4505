use proptest::prelude::*;

use super::*;
use crate::tensor::TensorData;

fn refusal(body: &[u8], json_length: Option<usize>) -> String {
    read(body, json_length).unwrap_err().to_string()
}

/// The JSON, the buffers after it, and how long the JSON is.
fn with_buffers(json: &str, buffers: &[u8]) -> (Vec<u8>, Option<usize>) {
    ([json.as_bytes(), buffers].concat(), Some(json.len()))
}

const GOOD: &str = r#"{"id":"a","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2.5]}],
"outputs":[{"name":"label"},{"name":"p","parameters":{"binary_data":true}}],
"parameters":{"segment":"de","binary_data_output":false,"priority":3}}"#;

#[test]
fn a_request_says_its_id_segment_inputs_and_outputs() {
    let body = read(GOOD.as_bytes(), None).unwrap();
    assert_eq!(body.id.as_deref(), Some("a"));
    assert_eq!(body.segment.as_deref(), Some("de"));
    assert_eq!(body.inputs[0].data, TensorData::Fp32(vec![1.0, 2.5]));
    let wanted = |name: &str, binary| WantedOutput {
        name: name.to_owned(),
        binary,
    };
    assert_eq!(
        body.outputs,
        [wanted("label", None), wanted("p", Some(true))]
    );
    assert!(!body.binary_outputs);
    // A header that counts all of it changes nothing.
    assert_eq!(read(GOOD.as_bytes(), Some(GOOD.len())), Ok(body));
}

#[test]
fn what_clients_leave_out_they_may_write_as_null() {
    let json = r#"{"id":null,"parameters":null,"outputs":null,"inputs":[
        {"name":"x","datatype":"INT8","shape":[1],"parameters":null,"data":[7]}]}"#;
    let body = read(json.as_bytes(), None).unwrap();
    assert_eq!((body.id, body.outputs.len()), (None, 0));
    assert_eq!(body.inputs[0].data, TensorData::Int8(vec![7]));
}

#[test]
fn unknown_fields_and_parameters_are_passed_over() {
    let json = r#"{"inputs":[{"name":"x","datatype":"INT8","shape":[1],"data":[7],
        "parameters":{"content_type":"np"},"more":[{}]}],
        "outputs":[{"name":"y","parameters":{"content_type":"np"}}],
        "parameters":{"timeout":5,"sequence_id":{"a":[1]}},"more":null}"#;
    assert!(read(json.as_bytes(), None).is_ok());
}

#[test]
fn buffers_are_cut_in_the_order_of_the_inputs_beside_inputs_in_json() {
    let json = r#"{"parameters":{"binary_data_output":true},"inputs":[
        {"name":"a","datatype":"UINT16","shape":[2],"parameters":{"binary_data_size":4}},
        {"name":"b","datatype":"INT8","shape":[1],"data":[-3]},
        {"name":"c","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":6}}]}"#;
    let (bytes, length) = with_buffers(json, b"\x01\0\x02\0\x02\0\0\0hi");
    let body = read(&bytes, length).unwrap();
    assert!(body.binary_outputs);
    let data: Vec<_> = body.inputs.into_iter().map(|input| input.data).collect();
    assert_eq!(
        data,
        [
            TensorData::Uint16(vec![1, 2]),
            TensorData::Int8(vec![-3]),
            TensorData::Bytes(vec![b"hi".to_vec()]),
        ]
    );
}

#[test]
fn buffers_that_do_not_add_up_say_which_and_by_how_much() {
    let json = |size: &str| {
        format!(
            r#"{{"inputs":[{{"name":"a","datatype":"UINT16","shape":[2],"parameters":{{"binary_data_size":{size}}}}}]}}"#
        )
    };
    let refused = |size: &str, buffers: &[u8]| {
        let (body, length) = with_buffers(&json(size), buffers);
        refusal(&body, length)
    };
    assert!(refused("4", b"abc").contains("announces 4 bytes of binary data, but 3 are left"));
    assert!(refused("4", b"abcde").starts_with("1 bytes are left after the last buffer"));
    assert!(refused("3", b"abc").ends_with("UINT16 [2] needs 4"));
    let most = u64::MAX.to_string();
    assert!(refused(&most, b"abcd").contains("but 4 are left"));
    for size in ["18446744073709551616", "-4", "4.0", "\"4\"", "[4]"] {
        assert!(
            refused(size, b"abcd").contains("not an inference request"),
            "{size}"
        );
    }
    let alone = json("4");
    assert!(refusal(alone.as_bytes(), None).contains(JSON_LENGTH_HEADER));
    let both = alone.replace("\"parameters\"", "\"data\":[1,2],\"parameters\"");
    let (body, length) = with_buffers(&both, b"abcd");
    assert!(refusal(&body, length).contains("send one of them"));
    // Two sizes whose sum overflows.
    let two = format!(
        r#"{{"inputs":[{{"name":"a","datatype":"UINT8","shape":[2],"parameters":{{"binary_data_size":2}}}},
        {{"name":"b","datatype":"UINT8","shape":[2],"parameters":{{"binary_data_size":{most}}}}}]}}"#
    );
    let (body, length) = with_buffers(&two, b"abcd");
    assert!(refusal(&body, length).contains("input \"b\""));
}

#[test]
fn a_json_length_beyond_or_inside_the_json_is_refused() {
    let wanted = "is 999, but the body has";
    assert!(refusal(GOOD.as_bytes(), Some(999)).contains(wanted));
    assert!(refusal(GOOD.as_bytes(), Some(usize::MAX)).contains("but the body has"));
    assert!(refusal(GOOD.as_bytes(), Some(GOOD.len() - 1)).contains("EOF"));
    assert!(refusal(GOOD.as_bytes(), Some(0)).contains("there is no JSON"));
}

#[test]
fn what_we_do_not_do_is_refused_and_not_passed_over() {
    let shared = r#"{"inputs":[{"name":"x","datatype":"INT8","shape":[1],
        "parameters":{"shared_memory_region":"r","shared_memory_byte_size":1}}]}"#;
    assert!(refusal(shared.as_bytes(), None).contains("asks for shared memory"));
    let classes = GOOD.replace("\"binary_data\":true", "\"classification\":3");
    assert!(refusal(classes.as_bytes(), None).contains("asks for classification"));
}

#[test]
fn bounds_of_names_and_numbers_are_kept() {
    let long = GOOD.replace("\"id\":\"a\"", &format!("\"id\":\"{}\"", "a".repeat(1_025)));
    assert!(refusal(long.as_bytes(), None).contains("at most 1024 bytes"));
    let segment = GOOD.replace("\"de\"", "\"no such\\u0000tag\"");
    assert!(refusal(segment.as_bytes(), None).contains("is no segment"));
    let many = GOOD.replace("{\"name\":\"label\"}", &[r#"{"name":"y"}"#; 70].join(","));
    assert!(refusal(many.as_bytes(), None).contains("71 outputs"));
}

/// Bodies of both forms that are read, for mutations to begin with.
fn seeds() -> Vec<(Vec<u8>, Option<usize>)> {
    let binary = r#"{"inputs":[{"name":"a","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}},
        {"name":"c","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":11}},
        {"name":"b","datatype":"BOOL","shape":[2],"data":[true,false]}]}"#;
    let buffers = b"\0\0\x80\x3f\0\0\0\x40\x02\0\0\0hi\x01\0\0\0!";
    let late =
        r#"{"inputs":[{"data":[[1,2],[3,-4e1]],"shape":[2,2],"datatype":"FP64","name":"x"}]}"#;
    let seeds = vec![
        (GOOD.as_bytes().to_vec(), None),
        (late.as_bytes().to_vec(), None),
        with_buffers(binary, buffers),
    ];
    for (body, length) in &seeds {
        read(body, *length).unwrap();
    }
    seeds
}

/// What a mutation puts where it falls: tokens that readers of JSON and lengths trip over.
const TOKENS: &[&[u8]] = &[
    b"",
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-",
    b"null",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"18446744073709551615",
    b"99999999999999999999",
    b"\\u0000",
    b"\\ud800",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x80",
    b"[[[[[[[[[[[[[[[[[[",
    b"\"binary_data_size\":8,",
    b"\"data\":[1],",
    b"\"FP16\"",
    b"\"BYTES\"",
];

proptest! {
    /// Any body gives a request whose tensors hold what their shapes say, or a message.
    #[test]
    fn mutated_bodies_are_read_or_refused(
        seed in 0..3_usize,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..9_usize, 0..TOKENS.len()), 1..6),
        length in prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)],
    ) {
        let (mut body, mut json_length) = seeds().swap_remove(seed);
        for (at, gone, token) in cuts {
            let at = at.index(body.len() + 1);
            let end = (at + gone).min(body.len());
            body.splice(at..end, TOKENS[token].iter().copied());
        }
        if let Some(length) = length {
            json_length = Some(usize::from(length));
        }
        match read(&body, json_length) {
            Ok(request) => {
                for tensor in request.inputs {
                    let count = crate::tensor::element_count(&tensor.shape);
                    prop_assert_eq!(count, Some(tensor.data.len()));
                }
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn bytes_without_any_form_are_refused(body: Vec<u8>, length: Option<usize>) {
        prop_assert!(read(&body, length).is_err());
    }
}

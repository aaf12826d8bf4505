//! Weights that an ONNX graph keeps in other files.
//!
//! The engine would look for them in the folder of the model file. A cache has no such
//! folders, only blobs by digest. So the bytes are put into the graph before the engine
//! sees it, from the files that the signed manifest names and from no others: nothing
//! that a graph says can make the agent open a path.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use rollcall_shared::manifest::FilePath;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use super::EngineError;

/// Graphs within graphs (loops, branches). Deeper: refused, no trainer writes such.
const DEPTH_MAX: usize = 16;

/// Puts external data into `graph`.
///
/// # Errors
/// When a file is not one of the version's, or too short for what the graph wants of it.
pub fn inline_external_data(
    graph: &mut GraphProto,
    files: &BTreeMap<FilePath, PathBuf>,
) -> Result<(), EngineError> {
    inline_graph(graph, files, 0)
}

fn refused(why: String) -> EngineError {
    EngineError::ExternalData { why }
}

fn inline_graph(
    graph: &mut GraphProto,
    files: &BTreeMap<FilePath, PathBuf>,
    depth: usize,
) -> Result<(), EngineError> {
    if depth > DEPTH_MAX {
        return Err(refused(format!(
            "graphs lie more than {DEPTH_MAX} deep in each other"
        )));
    }
    for tensor in &mut graph.initializer {
        inline_tensor(tensor, files)?;
    }
    for node in &mut graph.node {
        inline_node(node, files, depth)?;
    }
    Ok(())
}

fn inline_node(
    node: &mut NodeProto,
    files: &BTreeMap<FilePath, PathBuf>,
    depth: usize,
) -> Result<(), EngineError> {
    for attribute in &mut node.attribute {
        for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
            inline_tensor(tensor, files)?;
        }
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            inline_graph(graph, files, depth + 1)?;
        }
    }
    Ok(())
}

fn inline_tensor(
    tensor: &mut TensorProto,
    files: &BTreeMap<FilePath, PathBuf>,
) -> Result<(), EngineError> {
    if tensor.data_location != Some(DataLocation::External as i32) {
        return Ok(());
    }
    let entry = |key: &str| {
        let found = tensor.external_data.iter().find(|entry| entry.key == key);
        found.map(|entry| entry.value.as_str())
    };
    let number = |key: &str| match entry(key).map(str::parse::<u64>) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => Err(refused(format!(
            "tensor {:?} has no valid {key}",
            tensor.name
        ))),
    };
    let location = entry("location").unwrap_or_default();
    let path = location
        .parse::<FilePath>()
        .ok()
        .and_then(|path| files.get(&path))
        .ok_or_else(|| refused(format!("the version has no file {location:?}")))?;
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    tensor.raw_data = read_range(path, offset, length, location)?;
    tensor.data_location = None;
    tensor.external_data.clear();
    Ok(())
}

fn read_range(
    path: &PathBuf,
    offset: u64,
    length: Option<u64>,
    location: &str,
) -> Result<Vec<u8>, EngineError> {
    let io = |source| EngineError::Io {
        path: path.clone(),
        source,
    };
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let rest = size.checked_sub(offset);
    let length = match (rest, length) {
        (Some(rest), None) => rest,
        (Some(rest), Some(length)) if length <= rest => length,
        (Some(_) | None, _) => {
            return Err(refused(format!(
                "{location:?} has {size} bytes, too few for the graph"
            )));
        }
    };
    file.seek(SeekFrom::Start(offset)).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::StringStringEntryProto;

    fn external(entries: &[(&str, &str)]) -> GraphProto {
        let external_data = entries
            .iter()
            .map(|(key, value)| StringStringEntryProto {
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect();
        let tensor = TensorProto {
            data_location: Some(DataLocation::External as i32),
            external_data,
            ..TensorProto::default()
        };
        GraphProto {
            initializer: vec![tensor],
            ..GraphProto::default()
        }
    }

    #[test]
    fn bytes_come_from_the_versions_files_and_from_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        std::fs::write(&blob, b"0123456789").unwrap();
        let files = BTreeMap::from([(FilePath::new("w/weights.bin").unwrap(), blob)]);

        let range = [
            ("location", "w/weights.bin"),
            ("offset", "2"),
            ("length", "3"),
        ];
        let mut graph = external(&range);
        inline_external_data(&mut graph, &files).unwrap();
        assert_eq!(graph.initializer[0].raw_data, b"234");
        assert_eq!(graph.initializer[0].data_location, None);

        for bad in [
            &[("location", "../../etc/passwd")][..],
            &[("location", "/etc/passwd")],
            &[("location", "other.bin")],
            &[],
            &[("location", "w/weights.bin"), ("offset", "11")],
            &[
                ("location", "w/weights.bin"),
                ("offset", "8"),
                ("length", "3"),
            ],
            &[("location", "w/weights.bin"), ("offset", "x")],
            &[
                ("location", "w/weights.bin"),
                ("length", "18446744073709551615"),
            ],
        ] {
            let refusal = inline_external_data(&mut external(bad), &files).unwrap_err();
            assert!(
                matches!(refusal, EngineError::ExternalData { .. }),
                "{bad:?}: {refusal}"
            );
        }
    }
}

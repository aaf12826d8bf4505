//! Weights that an ONNX graph keeps in other files.
//!
//! The engine would look for them in the folder of the model file. A cache has no such
//! folders, only blobs by digest. So the bytes are put into the graph before the engine
//! sees it, from the files that the signed manifest names and from no others: nothing
//! that a graph says can make the agent open a path. An engine that maps such files
//! itself asks for their names first, under the same rule.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use rollcall_shared::manifest::FilePath;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};

use super::EngineError;

/// Graphs within graphs (loops, branches). Deeper: refused, no trainer writes such.
const DEPTH_MAX: usize = 16;

/// Puts external data into `model`.
///
/// # Errors
/// When a file is not one of the version's, or too short for what the graph wants of it.
pub fn inline_external_data(
    model: &mut ModelProto,
    files: &BTreeMap<FilePath, PathBuf>,
) -> Result<(), EngineError> {
    visit(model, &mut |tensor| inline_tensor(tensor, files))
}

/// The files that `model` keeps data in, for an engine that opens them itself.
///
/// # Errors
/// When one is not of the version.
pub fn external_files(
    model: &mut ModelProto,
    files: &BTreeMap<FilePath, PathBuf>,
) -> Result<BTreeMap<FilePath, PathBuf>, EngineError> {
    let mut found = BTreeMap::new();
    visit(model, &mut |tensor| {
        let (name, path) = file_of(tensor, files)?;
        found.insert(name.clone(), path.clone());
        Ok(())
    })?;
    Ok(found)
}

fn refused(why: String) -> EngineError {
    EngineError::ExternalData { why }
}

/// Called with each tensor whose data is external.
type Visitor<'a> = dyn FnMut(&mut TensorProto) -> Result<(), EngineError> + 'a;

fn visit(model: &mut ModelProto, visitor: &mut Visitor<'_>) -> Result<(), EngineError> {
    if let Some(graph) = &mut model.graph {
        visit_graph(graph, visitor, 0)?;
    }
    for function in &mut model.functions {
        for node in &mut function.node {
            visit_node(node, visitor, 0)?;
        }
    }
    Ok(())
}

fn visit_graph(
    graph: &mut GraphProto,
    visitor: &mut Visitor<'_>,
    depth: usize,
) -> Result<(), EngineError> {
    if depth > DEPTH_MAX {
        return Err(refused(format!(
            "graphs lie more than {DEPTH_MAX} deep in each other"
        )));
    }
    for tensor in &mut graph.initializer {
        visit_tensor(tensor, visitor)?;
    }
    for tensor in &mut graph.sparse_initializer {
        visit_sparse(tensor, visitor)?;
    }
    for node in &mut graph.node {
        visit_node(node, visitor, depth)?;
    }
    Ok(())
}

fn visit_node(
    node: &mut NodeProto,
    visitor: &mut Visitor<'_>,
    depth: usize,
) -> Result<(), EngineError> {
    for attribute in &mut node.attribute {
        for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
            visit_tensor(tensor, visitor)?;
        }
        let sparse = &mut attribute.sparse_tensor;
        for tensor in sparse.iter_mut().chain(&mut attribute.sparse_tensors) {
            visit_sparse(tensor, visitor)?;
        }
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            visit_graph(graph, visitor, depth + 1)?;
        }
    }
    Ok(())
}

fn visit_sparse(
    tensor: &mut SparseTensorProto,
    visitor: &mut Visitor<'_>,
) -> Result<(), EngineError> {
    for part in tensor.values.iter_mut().chain(&mut tensor.indices) {
        visit_tensor(part, visitor)?;
    }
    Ok(())
}

fn visit_tensor(tensor: &mut TensorProto, visitor: &mut Visitor<'_>) -> Result<(), EngineError> {
    if tensor.data_location == Some(DataLocation::External as i32) {
        visitor(tensor)
    } else {
        Ok(())
    }
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    let found = tensor.external_data.iter().find(|entry| entry.key == key);
    found.map(|entry| entry.value.as_str())
}

/// The file that a tensor's data lies in.
fn file_of<'a>(
    tensor: &TensorProto,
    files: &'a BTreeMap<FilePath, PathBuf>,
) -> Result<(&'a FilePath, &'a PathBuf), EngineError> {
    let location = entry(tensor, "location").unwrap_or_default();
    let path = location.parse::<FilePath>().ok();
    path.and_then(|path| files.get_key_value(&path))
        .ok_or_else(|| refused(format!("the version has no file {location:?}")))
}

fn inline_tensor(
    tensor: &mut TensorProto,
    files: &BTreeMap<FilePath, PathBuf>,
) -> Result<(), EngineError> {
    let number = |key: &str| match entry(tensor, key).map(str::parse::<u64>) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => Err(refused(format!(
            "tensor {:?} has no valid {key}",
            tensor.name
        ))),
    };
    let (location, path) = file_of(tensor, files)?;
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    tensor.raw_data = read_range(path, offset, length, location.as_str())?;
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

    fn external(entries: &[(&str, &str)]) -> ModelProto {
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
        let graph = GraphProto {
            initializer: vec![tensor],
            ..GraphProto::default()
        };
        ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
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
        let mut model = external(&range);
        assert_eq!(external_files(&mut model, &files).unwrap(), files);
        inline_external_data(&mut model, &files).unwrap();
        let tensor = &model.graph.as_ref().unwrap().initializer[0];
        assert_eq!(tensor.raw_data, b"234");
        assert_eq!(tensor.data_location, None);
        assert!(external_files(&mut model, &files).unwrap().is_empty());

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

//! The server's model repository: one folder a loaded version, each with a mark of ours.
//!
//! Files are copied, not linked: the cache is closed to others, and the server's user
//! must read these.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rollcall_shared::manifest::{DataType, ModelSignature, TensorSpec};
use serde_json::json;

use super::super::{EngineError, LoadFiles};
use crate::config::engine::Layout;

/// Says that a folder is an agent's, which removes it when it starts anew.
const MARK: &str = ".rollcall";

/// The folder, and how it is laid out.
#[derive(Debug)]
pub(super) struct Repository {
    path: PathBuf,
    layout: Layout,
    implementation: Option<String>,
}

impl Repository {
    pub(super) const fn new(path: PathBuf, layout: Layout, implementation: Option<String>) -> Self {
        Self {
            path,
            layout,
            implementation,
        }
    }

    /// Names of what an agent that was killed left there.
    pub(super) fn leftovers(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.path().join(MARK).exists() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    /// Writes what the server needs to load a version under `name`.
    pub(super) fn write(
        &self,
        name: &str,
        files: &LoadFiles,
        signature: &ModelSignature,
    ) -> Result<(), EngineError> {
        let folder = self.path.join(name);
        self.write_files(&folder, name, files, signature)
            .map_err(|source| EngineError::Io {
                path: folder,
                source,
            })
    }

    fn write_files(
        &self,
        folder: &Path,
        name: &str,
        files: &LoadFiles,
        signature: &ModelSignature,
    ) -> io::Result<()> {
        make_folder(folder)?;
        fs::write(folder.join(MARK), files.name.as_bytes())?;
        let (settings_name, settings, models) = match self.layout {
            Layout::Triton => {
                let models = folder.join("1");
                make_folder(&models)?;
                ("config.pbtxt", triton_config(name, signature), models)
            }
            Layout::Mlserver => (
                "model-settings.json",
                self.mlserver_settings(name, signature),
                folder.to_owned(),
            ),
        };
        copy(&files.model, &models.join("model.onnx"))?;
        for (path, blob) in &files.others {
            let mut inside = models.clone();
            let mut parts = path.as_str().split('/').peekable();
            while let Some(part) = parts.next() {
                inside.push(part);
                if parts.peek().is_some() {
                    make_folder(&inside)?;
                }
            }
            copy(blob, &inside)?;
        }
        // Last, because a server takes the folder for a model when it is there.
        let settings_path = folder.join(settings_name);
        fs::write(&settings_path, settings)?;
        fs::set_permissions(settings_path, Permissions::from_mode(0o644))
    }

    /// Takes a version away again. Nothing there: nothing to do.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn mlserver_settings(&self, name: &str, signature: &ModelSignature) -> String {
        let settings = json!({
            "name": name,
            "implementation": self.implementation,
            "platform": "onnx",
            "inputs": signature.inputs,
            "outputs": signature.outputs,
            "parameters": {"uri": "./model.onnx"},
        });
        format!("{settings:#}\n")
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, Permissions::from_mode(0o644))
}

/// With every shape written out and no batching of its own: then Triton completes nothing.
fn triton_config(name: &str, signature: &ModelSignature) -> String {
    let tensors = |kind: &str, specs: &[TensorSpec]| -> String {
        let tensor = |spec: &TensorSpec| {
            let dims: Vec<String> = spec.shape.iter().map(i64::to_string).collect();
            format!(
                "{kind} {{ name: {:?} data_type: {} dims: [ {} ] }}\n",
                spec.name,
                triton_type(spec.datatype),
                dims.join(", ")
            )
        };
        specs.iter().map(tensor).collect()
    };
    format!(
        "name: {name:?}\nplatform: \"onnxruntime_onnx\"\nmax_batch_size: 0\n{}{}",
        tensors("input", &signature.inputs),
        tensors("output", &signature.outputs)
    )
}

fn triton_type(datatype: DataType) -> String {
    match datatype {
        DataType::Bytes => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rollcall_shared::manifest::FilePath;

    use super::*;
    use crate::engine::fixture::signature;

    fn files(folder: &Path) -> LoadFiles {
        let blob = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            path
        };
        let weights = FilePath::new("w/weights.bin").unwrap();
        LoadFiles {
            name: "digits@1.0.0".to_owned(),
            model: blob("a", "model"),
            others: BTreeMap::from([(weights, blob("b", "weights"))]),
        }
    }

    #[test]
    fn a_version_is_laid_out_as_triton_wants_it_and_taken_away() {
        let (cache, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let repository = Repository::new(dir.path().to_owned(), Layout::Triton, None);
        fs::create_dir(dir.path().join("theirs")).unwrap();
        let files = files(cache.path());
        repository
            .write("digits--1", &files, &signature(64, 10))
            .unwrap();
        let folder = dir.path().join("digits--1");
        let text = |path: &str| fs::read_to_string(folder.join(path)).unwrap();
        assert_eq!(
            (text("1/model.onnx"), text("1/w/weights.bin")),
            ("model".into(), "weights".into())
        );
        assert_eq!(
            text("config.pbtxt"),
            "name: \"digits--1\"\nplatform: \"onnxruntime_onnx\"\nmax_batch_size: 0\n\
             input { name: \"input\" data_type: TYPE_FP32 dims: [ -1, 64 ] }\n\
             output { name: \"label\" data_type: TYPE_INT64 dims: [ -1 ] }\n\
             output { name: \"probabilities\" data_type: TYPE_FP32 dims: [ -1, 10 ] }\n"
        );
        let mode = |path: &str| folder.join(path).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("1/w/weights.bin"), mode("1/w")), (0o644, 0o755));
        assert_eq!(repository.leftovers().unwrap(), ["digits--1"]);
        repository.remove("digits--1").unwrap();
        repository.remove("digits--1").unwrap();
        assert!(repository.leftovers().unwrap().is_empty());
        assert!(dir.path().join("theirs").exists());
    }

    #[test]
    fn mlserver_gets_the_class_that_serves_it_and_the_signature() {
        let (cache, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let class = Some("runtimes.Onnx".to_owned());
        let repository = Repository::new(dir.path().to_owned(), Layout::Mlserver, class);
        let files = files(cache.path());
        repository.write("d", &files, &signature(64, 10)).unwrap();
        let text = fs::read(dir.path().join("d/model-settings.json")).unwrap();
        let settings: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(settings["name"], "d");
        assert_eq!(settings["implementation"], "runtimes.Onnx");
        let input = json!({"name": "input", "datatype": "FP32", "shape": [-1, 64]});
        assert_eq!(settings["inputs"], json!([input]));
        assert!(dir.path().join("d/w/weights.bin").exists());
    }
}

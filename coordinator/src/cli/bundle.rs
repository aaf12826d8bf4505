//! What `rollcall version push` finds at its path: a folder with `model.onnx` and
//! what belongs to it, or a single model file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rollcall_shared::digest::Digest;
use rollcall_shared::limits::FILES_PER_VERSION_MAX;
use rollcall_shared::manifest::{FilePath, MODEL_FILE, Metadata};

/// Read as metadata, not pushed as a file.
const METADATA_FILE: &str = "metadata.toml";

/// How deep folders in a bundle may lie.
const DEPTH_MAX: usize = 8;

/// Why a path is not a bundle.
#[derive(Debug, thiserror::Error)]
pub(super) enum BundleError {
    #[error("{} cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} has no {MODEL_FILE}: push a folder that has one, or a single .onnx file", path.display())]
    NoModel { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Name {
        path: PathBuf,
        source: rollcall_shared::manifest::FilePathError,
    },
    #[error("{} is no metadata: {source}", path.display())]
    Metadata {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("{} has more than {FILES_PER_VERSION_MAX} files, or folders in folders over {DEPTH_MAX} deep", path.display())]
    TooMany { path: PathBuf },
}

/// One file to push.
#[derive(Debug)]
pub(super) struct BundleFile {
    /// Its name in the version.
    pub(super) path: FilePath,
    /// Where it lies here.
    pub(super) source: PathBuf,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

/// What to push.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) files: Vec<BundleFile>,
    pub(super) metadata: Metadata,
}

impl Bundle {
    /// Reads the bundle at `path`; `metadata` takes the place of its own metadata file.
    pub(super) fn read(path: &Path, metadata: Option<&Path>) -> Result<Self, BundleError> {
        let mut names = Vec::new();
        let folder = path.is_dir();
        if folder {
            walk(path, path, &mut names, 0)?;
        } else {
            let model = FilePath::new(MODEL_FILE).map_err(|source| BundleError::Name {
                path: path.to_owned(),
                source,
            })?;
            names.push((model, path.to_owned()));
        }
        if !names.iter().any(|(name, _)| name.as_str() == MODEL_FILE) {
            return Err(BundleError::NoModel {
                path: path.to_owned(),
            });
        }
        let own = path.join(METADATA_FILE);
        let metadata = match metadata {
            Some(file) => read_metadata(file)?,
            None if folder && own.is_file() => read_metadata(&own)?,
            None => Metadata::default(),
        };
        let files = names
            .into_iter()
            .map(|(path, source)| {
                let (size, digest) = hash(&source).map_err(|error| BundleError::Io {
                    path: source.clone(),
                    source: error,
                })?;
                Ok(BundleFile {
                    path,
                    source,
                    size,
                    digest,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { files, metadata })
    }
}

fn walk(
    root: &Path,
    folder: &Path,
    names: &mut Vec<(FilePath, PathBuf)>,
    depth: usize,
) -> Result<(), BundleError> {
    let io = |source| BundleError::Io {
        path: folder.to_owned(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let relative = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .to_string_lossy()
            .into_owned();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden || relative == METADATA_FILE {
            continue;
        }
        if names.len() >= FILES_PER_VERSION_MAX || depth > DEPTH_MAX {
            return Err(BundleError::TooMany {
                path: root.to_owned(),
            });
        }
        if path.is_dir() {
            walk(root, &path, names, depth + 1)?;
        } else {
            let name = FilePath::new(relative).map_err(|source| BundleError::Name {
                path: path.clone(),
                source,
            })?;
            names.push((name, path));
        }
    }
    Ok(())
}

fn read_metadata(path: &Path) -> Result<Metadata, BundleError> {
    let text = fs::read_to_string(path).map_err(|source| BundleError::Io {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| BundleError::Metadata {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

fn hash(path: &Path) -> io::Result<(u64, Digest)> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((size, Digest::from_bytes(*hasher.finalize().as_bytes())));
        }
        size += read as u64;
        hasher.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models")
    }

    #[test]
    fn a_folder_is_pushed_with_its_metadata_read() {
        let bundle = Bundle::read(&models().join("digits/1.0.0"), None).unwrap();
        let mut names: Vec<_> = bundle.files.iter().map(|file| file.path.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["model.onnx", "smoke.json", "validation.json"]);
        assert_eq!(bundle.metadata.metrics["accuracy"], 0.96);
    }

    #[test]
    fn a_single_file_is_the_model() {
        let bundle = Bundle::read(&models().join("wine/1.0.0/model.onnx"), None).unwrap();
        assert_eq!(bundle.files.len(), 1);
        assert_eq!(bundle.files[0].path.as_str(), MODEL_FILE);
    }

    #[test]
    fn a_folder_without_a_model_and_a_bad_metadata_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Bundle::read(folder.path(), None).unwrap_err();
        assert!(matches!(missing, BundleError::NoModel { .. }));
        fs::write(folder.path().join(MODEL_FILE), b"x").unwrap();
        fs::write(folder.path().join(METADATA_FILE), b"owners = 3").unwrap();
        let bad = Bundle::read(folder.path(), None).unwrap_err();
        assert!(matches!(bad, BundleError::Metadata { .. }), "{bad}");
    }
}

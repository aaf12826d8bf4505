//! onnxruntime, from a library that is loaded when the agent starts.
//!
//! The agent is built without it: an operator installs the build that fits the hosts
//! (CPU, CUDA) and says where it lies. One library serves the whole process.
//!
//! A session runs one request at a time, so a model has a few of them, see [`pool`](super::pool).
//! The model is loaded by its path and not through this process's memory; weights in files
//! of their own are mapped, and so shared by all sessions.
//!
//! The library opens whatever path a graph names. So the graph is read first, and the
//! files that it names must be the version's own; they are linked into a folder where
//! nothing else is.

mod convert;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::ep::{CUDA, ExecutionProvider};
use ort::logging::LogLevel;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::Outlet;
use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::manifest::{FilePath, ModelSignature, TensorSpec};
use tempfile::TempDir;
use tract_onnx::Onnx;

use super::check::{check_output, in_order};
use super::external::external_files;
use super::graph::{ModelFile, Side, check_datatypes, check_names, mismatch};
use super::panics::{catch, cut};
use super::pool::Pool;
use super::{Engine, EngineError, InferError, LoadFiles, LoadedModel};
use crate::config::engine::{Device, OnnxRuntime as Settings};
use convert::{found, from_ort, to_ort};

/// The folder that models with files of their own are linked into.
const LINKS: &str = "onnxruntime";

/// The library of this process: a second one cannot be loaded beside it.
static LIBRARY: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// It is not there, too old, or something else.
    #[error(
        "engine.onnxruntime.library cannot be used: {why}; give the path of libonnxruntime.so, \
         1.23 or later (the PyPI wheel `onnxruntime` has it in onnxruntime/capi)"
    )]
    Load {
        /// In the loader's words.
        why: String,
    },
    /// The process has another one.
    #[error("this process has loaded {loaded}, and cannot load {asked} beside it")]
    Other {
        /// What it has.
        loaded: PathBuf,
        /// What was asked for.
        asked: PathBuf,
    },
    /// It was built for another device.
    #[error(
        "{library} cannot compute on {device}: install the build for it (the PyPI wheel \
         `onnxruntime-gpu`), or set engine.onnxruntime.device"
    )]
    NoDevice {
        /// The library.
        library: PathBuf,
        /// What was asked for.
        device: Device,
    },
    /// The folder for links cannot be made.
    #[error("cannot use the folder {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The engine.
pub struct OnnxRuntime {
    sessions: Arc<Sessions>,
    sessions_max: usize,
    links: PathBuf,
    onnx: Onnx,
}

impl OnnxRuntime {
    /// Loads the library. `dir`: on the cache's file system.
    ///
    /// # Errors
    /// When it cannot be loaded or does not have the device.
    pub fn open(settings: &Settings, dir: &Path) -> Result<Self, LibraryError> {
        let environment = catch(|| library(&settings.library))
            .unwrap_or_else(|why| Err(LibraryError::Load { why }))?;
        if let Device::Cuda(_) = settings.device
            && !CUDA::is_available().unwrap_or(false)
        {
            return Err(LibraryError::NoDevice {
                library: settings.library.clone(),
                device: settings.device,
            });
        }
        let links = dir.join(LINKS);
        empty_folder(&links).map_err(|source| LibraryError::Folder {
            path: links.clone(),
            source,
        })?;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            sessions: Arc::new(Sessions {
                environment,
                device: settings.device,
                threads: settings.threads,
            }),
            sessions_max: match settings.sessions {
                0 => cores(),
                sessions => sessions,
            },
            links,
            onnx: tract_onnx::onnx(),
        })
    }

    fn load_checked(
        &self,
        files: &LoadFiles,
        signature: &ModelSignature,
    ) -> Result<OrtModel, EngineError> {
        check_datatypes(signature)?;
        let mut file = ModelFile::read(&self.onnx, &files.model)?;
        check_names(file.graph()?, signature)?;
        let external = external_files(&mut file.proto, &files.others)?;
        // Both copies of the weights need not be in memory at a time.
        drop(file);
        let place = Place::of(&files.model, &external, &self.links)?;
        let outputs: Vec<String> = signature.outputs.iter().map(|o| o.name.clone()).collect();
        let first = self
            .sessions
            .make(place.model(), &outputs)
            .map_err(refused)?;
        check_tensors(&first.session, signature)?;
        let sessions = Arc::clone(&self.sessions);
        let make = move || {
            let made = sessions.make(place.model(), &outputs);
            made.map_err(|error| cut(error.to_string()))
        };
        Ok(OrtModel {
            signature: signature.clone(),
            pool: Pool::new(first, self.sessions_max, make),
        })
    }
}

impl Engine for OnnxRuntime {
    /// Of one session; the file itself is in memory once more while its names are checked.
    fn memory_percent(&self) -> u32 {
        220
    }

    fn load(
        &self,
        files: &LoadFiles,
        signature: &ModelSignature,
    ) -> Result<Arc<dyn LoadedModel>, EngineError> {
        let loaded = catch(|| self.load_checked(files, signature));
        let loaded = loaded.unwrap_or_else(|why| Err(EngineError::Panicked { why }))?;
        Ok(Arc::new(loaded))
    }
}

fn refused(error: impl std::fmt::Display) -> EngineError {
    EngineError::Refused {
        why: cut(error.to_string()),
    }
}

fn library(path: &Path) -> Result<Environment, LibraryError> {
    let mut library = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((loaded, environment)) = &*library {
        if loaded == path {
            return Ok(environment.clone());
        }
        return Err(LibraryError::Other {
            loaded: loaded.clone(),
            asked: path.to_owned(),
        });
    }
    let load = |why: String| LibraryError::Load { why };
    let environment = ort::init_from(path)
        .map_err(|error| load(error.to_string()))?
        .with_name("rollcall-agent")
        .with_telemetry(false)
        .build()
        .map_err(|error| load(error.to_string()))?;
    // It would write a line for each request that fails; they are counted, and come to us.
    environment.set_log_level(LogLevel::Fatal);
    tracing::info!(library = %path.display(), build = ort::info(), "onnxruntime is loaded");
    *library = Some((path.to_owned(), environment.clone()));
    Ok(environment)
}

/// What an agent that was killed left there goes.
fn empty_folder(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::create_dir_all(path)
}

/// Where the library finds a model.
enum Place {
    /// In the cache: it opens no other file.
    Cache(PathBuf),
    /// In a folder with the files that it opens.
    Folder(TempDir),
}

const MODEL: &str = "model.onnx";

impl Place {
    fn of(
        model: &Path,
        external: &BTreeMap<FilePath, PathBuf>,
        links: &Path,
    ) -> Result<Self, EngineError> {
        if external.is_empty() {
            return Ok(Self::Cache(model.to_owned()));
        }
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| EngineError::Io { path, source }
        };
        let folder = TempDir::new_in(links).map_err(io(links))?;
        let link = |from: &Path, name: &str| {
            let to = folder.path().join(name);
            to.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::hard_link(from, to)
        };
        link(model, MODEL).map_err(io(model))?;
        for (name, path) in external {
            link(path, name.as_str()).map_err(io(path))?;
        }
        Ok(Self::Folder(folder))
    }

    fn model(&self) -> Cow<'_, Path> {
        match self {
            Self::Cache(path) => Cow::Borrowed(path),
            Self::Folder(folder) => Cow::Owned(folder.path().join(MODEL)),
        }
    }
}

/// How sessions are made.
struct Sessions {
    environment: Environment,
    device: Device,
    threads: usize,
}

/// A session, and what it is asked for.
struct Runner {
    session: Session,
    options: RunOptions<HasSelectedOutputs>,
}

impl Sessions {
    fn make(&self, model: impl AsRef<Path>, outputs: &[String]) -> ort::Result<Runner> {
        let mut builder = Session::builder(&self.environment)?
            .with_intra_threads(self.threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?;
        if let Device::Cuda(number) = self.device {
            let cuda = CUDA::default().with_device_id(i32::from(number)).build();
            builder = builder.with_execution_providers([cuda.error_on_failure()])?;
        }
        let session = builder.commit_from_file(model)?;
        let none = OutputSelector::no_default();
        let selected = outputs.iter().fold(none, OutputSelector::with);
        let options = RunOptions::new()?.with_outputs(selected);
        Ok(Runner { session, options })
    }
}

/// What the library makes of the graph must be what the signature promises.
fn check_tensors(session: &Session, signature: &ModelSignature) -> Result<(), EngineError> {
    let check = |side, specs: &[TensorSpec], outlets: &[Outlet]| {
        for spec in specs {
            let outlet = outlets.iter().find(|outlet| outlet.name() == spec.name);
            let outlet =
                outlet.ok_or_else(|| mismatch("a tensor of the signature is not in the graph"))?;
            found(outlet.dtype()).check(side, spec)?;
        }
        Ok(())
    };
    check(Side::Input, &signature.inputs, session.inputs())?;
    check(Side::Output, &signature.outputs, session.outputs())
}

/// A model in memory.
struct OrtModel {
    signature: ModelSignature,
    pool: Arc<Pool<Runner>>,
}

impl OrtModel {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let ordered = in_order(&self.signature, inputs)?;
        let values: Vec<(&str, SessionInputValue<'_>)> = ordered
            .into_iter()
            .map(|tensor| Ok((tensor.name.as_str(), to_ort(tensor)?)))
            .collect::<Result<_, InferError>>()?;
        let mut taken = self.pool.take();
        let Runner { session, options } = &mut *taken;
        let outputs = session
            .run_with_options(values, options)
            .map_err(|error| InferError::Failed(cut(error.to_string())))?;
        let output = |spec: &TensorSpec| {
            let value = outputs.get(&spec.name).ok_or_else(|| InferError::Output {
                name: spec.name.clone(),
                why: "it is missing".to_owned(),
            })?;
            let tensor = from_ort(spec, value)?;
            check_output(spec, &tensor)?;
            Ok(tensor)
        };
        self.signature.outputs.iter().map(output).collect()
    }
}

impl LoadedModel for OrtModel {
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        catch(|| self.run(inputs)).unwrap_or_else(|why| Err(InferError::Panicked(why)))
    }

    fn platform(&self) -> &str {
        "onnxruntime_onnx"
    }
}

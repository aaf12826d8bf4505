//! The embedded engine: tract, pure Rust, on the CPU.
//!
//! A plan is a graph optimised for given input shapes. One plan for a single row is made
//! at load: it is the fastest (10 to 60 % over a symbolic one) and most requests have one
//! row. A second plan, with the free dimensions left open, is made on the first request
//! that needs it. Where tract cannot leave them open, plans for exact shapes are made and
//! a few kept.
//!
//! What tract is known to compute wrongly (some int8 networks, labels of two-class tree
//! ensembles) is not detected here: smoke cases do that, see [`crate::prepare`].

mod convert;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::manifest::{ModelSignature, TensorSpec};
use tract_onnx::Onnx;
use tract_onnx::pb::GraphProto;
use tract_onnx::prelude::{
    InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, OutletId, TValue, TractResult,
    TypedFact, TypedSimplePlan,
};
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::{TDim, TVec, ToDim};

use super::check::in_order;
use super::external::inline_external_data;
use super::graph::{
    FoundTensor, FoundType, ModelFile, Side, check_datatypes, check_names, mismatch,
};
use super::panics::{catch, cut};
use super::{Engine, EngineError, InferError, LoadFiles, LoadedModel};
use convert::{found_type, from_tract, to_datum_type, to_tract};

/// Plans for exact shapes that a model keeps, where its dimensions cannot be left open.
/// More: the one that was used longest ago goes, and is made again when it is needed.
const EXACT_PLANS_MAX: usize = 8;

type Plan = Arc<TypedSimplePlan>;

/// The embedded engine.
pub struct Tract {
    onnx: Onnx,
}

impl Default for Tract {
    fn default() -> Self {
        Self::new()
    }
}

impl Tract {
    /// The engine.
    #[must_use]
    pub fn new() -> Self {
        Self {
            onnx: tract_onnx::onnx().with_ignore_value_info(true),
        }
    }

    fn parse(
        &self,
        files: &LoadFiles,
        signature: &ModelSignature,
    ) -> Result<InferenceModel, EngineError> {
        let mut file = ModelFile::read(&self.onnx, &files.model)?;
        self.check_operators(file.graph()?)?;
        check_names(file.graph()?, signature)?;
        inline_external_data(&mut file.proto, &files.others)?;
        let parsed = self.onnx.parse(&file.proto, None).map_err(refused)?;
        if !parsed.unresolved_inputs.is_empty() {
            let names = parsed.unresolved_inputs.join(", ");
            return Err(EngineError::Refused {
                why: format!("nothing gives {names}"),
            });
        }
        let mut model = parsed.model;
        let outlets = |specs: &[TensorSpec]| -> Result<Vec<OutletId>, EngineError> {
            let outlet = |spec: &TensorSpec| parsed.outlets_by_name.get(&spec.name).copied();
            let found: Option<Vec<_>> = specs.iter().map(outlet).collect();
            found.ok_or_else(|| mismatch("a tensor of the signature is not in the graph"))
        };
        let (inputs, outputs) = (outlets(&signature.inputs)?, outlets(&signature.outputs)?);
        model.set_input_outlets(&inputs).map_err(refused)?;
        model.select_output_outlets(&outputs).map_err(refused)?;
        for (spec, outlet) in signature.inputs.iter().zip(&inputs) {
            let fact = model.outlet_fact(*outlet).map_err(refused)?;
            found_in_graph(fact).check(Side::Input, spec)?;
        }
        Ok(model)
    }

    fn check_operators(&self, graph: &GraphProto) -> Result<(), EngineError> {
        let operators: BTreeSet<&str> = graph
            .node
            .iter()
            .map(|node| node.op_type.as_str())
            .filter(|operator| !self.onnx.op_register.0.contains_key(*operator))
            .collect();
        if operators.is_empty() {
            return Ok(());
        }
        let operators = operators
            .into_iter()
            .map(|name| cut(name.to_owned()))
            .collect();
        Err(EngineError::UnsupportedOperators { operators })
    }
}

impl Engine for Tract {
    /// Measured: the graph as parsed, and the plan made of it.
    fn memory_percent(&self) -> u32 {
        230
    }

    fn load(
        &self,
        files: &LoadFiles,
        signature: &ModelSignature,
    ) -> Result<Arc<dyn LoadedModel>, EngineError> {
        let load = || -> Result<Arc<dyn LoadedModel>, EngineError> {
            check_datatypes(signature)?;
            let source = self.parse(files, signature)?;
            Ok(Arc::new(TractModel::new(source, signature)?))
        };
        catch(load).unwrap_or_else(|why| Err(EngineError::Panicked { why }))
    }
}

fn refused(error: impl std::fmt::Display) -> EngineError {
    EngineError::Refused {
        why: cut(format!("{error:#}")),
    }
}

/// What the graph says of an input.
fn found_in_graph(fact: &InferenceFact) -> FoundTensor {
    let datatype = fact.datum_type.concretize().map(found_type);
    let dim = |dim: Option<TDim>| dim.and_then(|dim| dim.to_i64().ok()).unwrap_or(-1);
    let dims = fact.shape.dims().map(|found| dim(found.concretize()));
    let dims: Vec<i64> = dims.collect();
    FoundTensor {
        datatype: datatype.unwrap_or(FoundType::Open),
        dims: (!fact.shape.is_open()).then_some(dims),
    }
}

/// What a plan says of an output.
fn found_in_plan(fact: &TypedFact) -> FoundTensor {
    let dims = fact.shape.iter().map(|dim| dim.to_i64().unwrap_or(-1));
    FoundTensor {
        datatype: found_type(fact.datum_type),
        dims: Some(dims.collect()),
    }
}

/// Concrete shapes of all inputs, in the signature's order.
type Shapes = Vec<Vec<usize>>;

/// What the free dimensions of a plan are.
enum FreeDimensions<'a> {
    Open,
    Exactly(&'a Shapes),
}

/// A model in memory.
struct TractModel {
    signature: ModelSignature,
    /// The shapes of `single`: every free dimension is 1.
    single_shapes: Shapes,
    single: Plan,
    /// Any shape; `None` inside: tract cannot make it.
    open: OnceLock<Option<Plan>>,
    /// What plans are made of; gone when no more can be needed.
    source: Mutex<Option<InferenceModel>>,
    /// For exact shapes, the latest used last. Empty while `open` works.
    exact: Mutex<Vec<(Shapes, Plan)>>,
}

impl TractModel {
    fn new(source: InferenceModel, signature: &ModelSignature) -> Result<Self, EngineError> {
        let one = |dim: &i64| usize::try_from(*dim).unwrap_or(1);
        let single_shapes: Shapes = signature
            .inputs
            .iter()
            .map(|spec| spec.shape.iter().map(one).collect())
            .collect();
        let single = make_plan(&source, signature, &FreeDimensions::Exactly(&single_shapes))
            .map_err(refused)?;
        check_outputs(&single, signature)?;
        let is_free = signature
            .inputs
            .iter()
            .any(|spec| spec.shape.iter().any(|dim| *dim < 0));
        Ok(Self {
            signature: signature.clone(),
            single_shapes,
            single,
            open: OnceLock::new(),
            source: Mutex::new(is_free.then_some(source)),
            exact: Mutex::new(Vec::new()),
        })
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let ordered = in_order(&self.signature, inputs)?;
        let values: TVec<TValue> = ordered
            .iter()
            .map(|tensor| to_tract(tensor))
            .collect::<Result<_, _>>()?;
        let plan = self.plan_for(&ordered)?;
        let outputs = plan.run(values).map_err(failed)?;
        self.signature
            .outputs
            .iter()
            .zip(outputs)
            .map(|(spec, value)| from_tract(spec, &value))
            .collect()
    }

    fn plan_for(&self, inputs: &[&Tensor]) -> Result<Plan, InferError> {
        let same = |(tensor, shape): (&&Tensor, &Vec<usize>)| tensor.shape == *shape;
        if inputs.iter().zip(&self.single_shapes).all(same) {
            return Ok(Arc::clone(&self.single));
        }
        if let Some(plan) = self.open.get_or_init(|| self.make_open_plan()) {
            return Ok(Arc::clone(plan));
        }
        self.exact_plan(inputs.iter().map(|tensor| tensor.shape.clone()).collect())
    }

    fn make_open_plan(&self) -> Option<Plan> {
        let mut source = lock(&self.source);
        let model = source.as_ref()?;
        let made = catch(|| make_plan(model, &self.signature, &FreeDimensions::Open));
        match made {
            Ok(Ok(plan)) => {
                *source = None;
                Some(plan)
            }
            Ok(Err(error)) => {
                tracing::info!("batches need a plan for each size: {error:#}");
                None
            }
            Err(panic) => {
                tracing::info!("batches need a plan for each size: {panic}");
                None
            }
        }
    }

    fn exact_plan(&self, shapes: Shapes) -> Result<Plan, InferError> {
        let kept = {
            let mut exact = lock(&self.exact);
            exact
                .iter()
                .position(|(known, _)| *known == shapes)
                .map(|at| {
                    let entry = exact.remove(at);
                    let plan = Arc::clone(&entry.1);
                    exact.push(entry);
                    plan
                })
        };
        if let Some(plan) = kept {
            return Ok(plan);
        }
        // A copy, so that requests with other shapes do not wait for this one.
        let source = lock(&self.source).clone().ok_or_else(|| {
            failed(format!(
                "the model takes only inputs of the shapes {:?}",
                self.single_shapes
            ))
        })?;
        let plan = make_plan(&source, &self.signature, &FreeDimensions::Exactly(&shapes))
            .map_err(failed)?;
        let mut exact = lock(&self.exact);
        if exact.len() >= EXACT_PLANS_MAX {
            exact.remove(0);
        }
        exact.push((shapes, Arc::clone(&plan)));
        Ok(plan)
    }
}

impl LoadedModel for TractModel {
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        catch(|| self.run(inputs)).unwrap_or_else(|why| Err(InferError::Panicked(why)))
    }
}

/// A panic while a lock is held leaves whole entries behind, so the data is good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: impl std::fmt::Display) -> InferError {
    InferError::Failed(cut(format!("{error:#}")))
}

fn make_plan(
    source: &InferenceModel,
    signature: &ModelSignature,
    free: &FreeDimensions<'_>,
) -> TractResult<Plan> {
    let mut model = source.clone();
    let symbols = model.symbols.clone();
    // The first dimension of every input is the same batch; other free ones are their own.
    let batch = symbols.new_with_prefix("batch").to_dim();
    for (index, spec) in signature.inputs.iter().enumerate() {
        let dim = |(axis, want): (usize, &i64)| -> TDim {
            match free {
                FreeDimensions::Exactly(shapes) => shapes[index][axis].to_dim(),
                FreeDimensions::Open if *want >= 0 => want.to_dim(),
                FreeDimensions::Open if axis == 0 => batch.clone(),
                FreeDimensions::Open => symbols.new_with_prefix("free").to_dim(),
            }
        };
        let shape: TVec<TDim> = spec.shape.iter().enumerate().map(dim).collect();
        let datum_type = to_datum_type(spec)?;
        model.set_input_fact(index, InferenceFact::dt_shape(datum_type, shape))?;
    }
    for outlet in model.outputs.clone() {
        model.set_outlet_fact(outlet, InferenceFact::default())?;
    }
    model.into_optimized()?.into_runnable()
}

/// What the plan gives must be what the signature promises.
fn check_outputs(plan: &Plan, signature: &ModelSignature) -> Result<(), EngineError> {
    for (index, spec) in signature.outputs.iter().enumerate() {
        let fact = plan.model().output_fact(index).map_err(refused)?;
        found_in_plan(fact).check(Side::Output, spec)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

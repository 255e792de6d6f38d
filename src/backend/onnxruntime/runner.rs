//! Running a session: inputs checked and lent, outputs shown in place.

use std::{borrow::Cow, fmt::Write};

use ort::value::ValueType;
use tempfile::TempDir;

use super::{
    RUNTIME,
    said::reason,
    session::Built,
    values::{info, lend, look},
};
use crate::{
    backend::{BackendError, LayerTime, Runner, TensorInfo, Visit, VisitAll},
    tensor::{ElementType, Tensor, TensorMap, TensorView},
};

pub(super) struct SessionRunner {
    built: Built,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
}

/// The first axis of a tensor as the model declares it.
#[derive(PartialEq)]
enum FirstAxis {
    One,
    Named(String),
}

impl FirstAxis {
    fn of(dtype: &ValueType) -> Option<Self> {
        let ValueType::Tensor { shape, dimension_symbols, .. } = dtype else { return None };
        match shape.first()? {
            1 => Some(Self::One),
            -1 => dimension_symbols.first().filter(|name| !name.is_empty()).cloned().map(Self::Named),
            _ => None,
        }
    }
}

impl SessionRunner {
    pub(super) fn new(built: Built) -> Self {
        let session = &built.session;
        let inputs = session.inputs().iter().map(|outlet| info(outlet.name(), outlet.dtype())).collect();
        let outputs = session.outputs().iter().map(|outlet| info(outlet.name(), outlet.dtype())).collect();
        Self { built, inputs, outputs }
    }

    /// Bytes of what one sample gives; `None` where the first axis of all inputs and outputs is not plainly that of samples,
    /// or other extents of outputs vary.
    pub(super) fn bytes_of_a_sample(&self) -> Option<usize> {
        let session = &self.built.session;
        let mut axes = session.inputs().iter().chain(session.outputs()).map(|outlet| FirstAxis::of(outlet.dtype()));
        let first = axes.next()??;
        let bytes = |info: &TensorInfo| {
            let mut extents = info.shape.get(1..)?.iter();
            extents.try_fold(info.element_type?.size(), |bytes, extent| bytes.checked_mul((*extent)?))
        };
        let mut outputs = self.outputs.iter();
        axes.all(|axis| axis.as_ref() == Some(&first))
            .then(|| outputs.try_fold(0usize, |all, info| all.checked_add(bytes(info)?)))?
    }
}

impl Runner for SessionRunner {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError> {
        self.visit_all(inputs, &mut |outputs| outputs.iter().try_for_each(|&(name, view)| visit(name, view)))
    }

    fn visit_all(&mut self, inputs: &TensorMap, visit: &mut VisitAll<'_>) -> Result<(), BackendError> {
        check_inputs(&self.inputs, inputs)?;
        let failed = run_failed;
        let lent = inputs
            .iter()
            .map(|(name, tensor)| Ok((Cow::Borrowed(name.as_str()), lend(tensor.view())?)))
            .collect::<ort::Result<Vec<_>>>()
            .map_err(|error| failed(&error))?;
        let outputs = self.built.session.run(lent).map_err(|error| failed_on(&self.inputs, inputs, &error))?;
        let values: Vec<_> = outputs.iter().collect();
        let mut looked = Vec::with_capacity(values.len());
        for (name, value) in &values {
            let Some(found) = look(value).map_err(|error| failed(&error))? else {
                return Err(no_numbers(name));
            };
            looked.push((*name, found));
        }
        let views: Vec<_> =
            looked.iter().map(|(name, (shape, values))| (*name, TensorView { shape, values: *values })).collect();
        visit(&views).map_err(BackendError::Visitor)
    }

    fn layer_times(&mut self, inputs: &TensorMap, calls: usize) -> Result<Option<Vec<LayerTime>>, BackendError> {
        let Some(folder) = self.built.layer_times.take() else { return Ok(None) };
        for _ in 0..calls {
            self.visit(inputs, &mut |_, _| Ok(()))?;
        }
        self.built.read_layer_times(folder)
    }
}

impl Built {
    /// The times of the layers so far, which the session wrote to `folder`; that goes with its content.
    pub(super) fn read_layer_times(&mut self, folder: TempDir) -> Result<Option<Vec<LayerTime>>, BackendError> {
        let failed = |reason: String| BackendError::Run { runtime: RUNTIME, reason };
        let file = self.session.end_profiling().map_err(|error| failed(reason(&error)))?;
        let text = std::fs::read(&file);
        drop(folder);
        let text = text.map_err(|error| failed(format!("it left no layer times in {file}: {error}")))?;
        super::layer_times::parse(&text)
            .map(Some)
            .map_err(|error| failed(format!("its layer times cannot be read: {error}")))
    }
}

/// Refuses an output that is not a tensor of numbers.
pub(super) fn no_numbers(output: &str) -> BackendError {
    let reason = format!("its output `{output}` is not a tensor of numbers; remove it from the model's outputs");
    BackendError::Run { runtime: RUNTIME, reason }
}

/// The library's refusal to run.
pub(super) fn run_failed(error: &ort::Error) -> BackendError {
    BackendError::Run { runtime: RUNTIME, reason: reason(error) }
}

/// The same, with what may be at fault where the model leaves sizes open.
fn failed_on(expected: &[TensorInfo], given: &TensorMap, error: &ort::Error) -> BackendError {
    let mut reason = reason(error);
    if let Some(hint) = expected.iter().find_map(|info| open_size(info, given.get(&info.name)?.shape())) {
        reason.push_str(&hint);
    }
    BackendError::Run { runtime: RUNTIME, reason }
}

/// What to change where a model that leaves extents of an input open fails on the ones that it was given.
fn open_size(info: &TensorInfo, given: &[usize]) -> Option<String> {
    let (batch, sizes) = info.shape.split_first()?;
    let (name, declared) = (&info.name, display_shape(&info.shape));
    if sizes.contains(&None) {
        let example: Vec<String> = info
            .shape
            .iter()
            .map(|extent| extent.map_or_else(|| "N".to_owned(), |extent| extent.to_string()))
            .collect();
        return Some(format!(
            "; input `{name}` is declared as {declared} and got {given:?}, which the model may not work with: bind the sizes \
             that it was made for with --shape {name}={} (a number for each N), or give data of such sizes",
            example.join("x")
        ));
    }
    (batch.is_none() && given.first().is_some_and(|&samples| samples > 1))
        .then(|| format!("; input `{name}` got {given:?}: if the model works with single samples only, use --batch 1"))
}

/// Compares what is given with what the model takes.
pub(crate) fn check_inputs(expected: &[TensorInfo], given: &TensorMap) -> Result<(), BackendError> {
    let refuse = |name: &str, reason: String| Err(BackendError::Input { name: name.to_owned(), reason });
    for info in expected {
        let Some(tensor) = given.get(&info.name) else {
            return refuse(&info.name, format!("it is missing; the data has {}", listed(given.keys())));
        };
        let Some(expected) = info.element_type else {
            let reason = "the model takes a type that has no counterpart here, such as 8-bit floats or text; let it take float32 \
                          and cast that itself";
            return refuse(&info.name, reason.to_owned());
        };
        if expected != tensor.element_type() {
            let how = match expected {
                ElementType::Bf16 => "give an array of float32, which is rounded, or of ml_dtypes' bfloat16".to_owned(),
                _ => format!("convert the array, as in NumPy's astype(\"{expected}\")"),
            };
            let reason = format!("the model takes {expected}, but {} was given; {how}", tensor.element_type());
            return refuse(&info.name, reason);
        }
        if let Some(reason) = shape_mismatch(&info.shape, tensor) {
            return refuse(&info.name, reason);
        }
    }
    match given.keys().find(|name| expected.iter().all(|info| info.name != **name)) {
        Some(unknown) => {
            let names = listed(expected.iter().map(|info| &info.name));
            refuse(unknown, format!("the model has no such input; it takes {names}"))
        }
        None => Ok(()),
    }
}

/// Says how the shapes differ and what to do about it; `None` when the tensor fits.
fn shape_mismatch(expected: &[Option<usize>], tensor: &Tensor) -> Option<String> {
    let given = tensor.shape();
    let fits = |(expected, given): (&Option<usize>, &usize)| expected.is_none_or(|expected| expected == *given);
    if expected.len() == given.len() && expected.iter().zip(given).all(fits) {
        return None;
    }
    let mut reason = format!("the model takes the shape {}, but {given:?} was given; ", display_shape(expected));
    let different: Vec<usize> =
        expected.iter().zip(given).enumerate().filter(|(_, pair)| !fits(*pair)).map(|(axis, _)| axis).collect();
    let _ = if expected.is_empty() {
        write!(reason, "if it leaves the rank of the input open, bind it with --shape, as in --shape input=1x3x224x224")
    } else if expected.len() != given.len() {
        write!(reason, "it needs {} axes, not {}", expected.len(), given.len())
    } else if different == [0] {
        let extent = expected[0].unwrap_or(1);
        write!(
            reason,
            "give {extent} along the first axis: set the batch size to that, or give sequences of that length"
        )
    } else if expected.len() == 4 && is_channels(expected, given) {
        write!(
            reason,
            "the layout looks swapped: transpose the arrays, or for images set `layout` in [preprocess] to the other of \
             NCHW and NHWC"
        )
    } else {
        write!(reason, "give arrays of that size, or for images set resize and crop in [preprocess] to it")
    };
    Some(reason)
}

/// True when the channels (1, 3 or 4) stand where the model does not expect them.
fn is_channels(expected: &[Option<usize>], given: &[usize]) -> bool {
    let channels = |extent: Option<usize>| matches!(extent, Some(1 | 3 | 4));
    (channels(expected[1]) && expected[1] == Some(given[3])) || (channels(expected[3]) && expected[3] == Some(given[1]))
}

fn display_shape(shape: &[Option<usize>]) -> String {
    let extents: Vec<String> =
        shape.iter().map(|extent| extent.map_or_else(|| "any".to_owned(), |extent| extent.to_string())).collect();
    format!("[{}]", extents.join(", "))
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "no inputs".to_owned() } else { names.join(", ") }
}

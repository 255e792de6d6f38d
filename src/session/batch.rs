//! The batch of a model: what a call takes, and what reading samples has to know of that.

use std::collections::{BTreeMap, BTreeSet};

use super::{Session, model::Subject};
use crate::{
    backend::{ExecutionProvider, TensorInfo, tensorrt::joined},
    dataset::{InputSpec, PassError, PrefetchOptions},
    onnx::proto::ValueInfoProto,
    pass::Samples,
    tensor::{Tensor, TensorMap, along, stacked},
};

impl Subject {
    /// What reading samples needs to know: the first axis is open where it counts the samples of a call, fixed or not.
    pub fn input_specs(&self) -> Vec<InputSpec> {
        let mut specs = self.specs();
        if self.fixed_batch().is_some() && !self.takes_whole_inputs() {
            specs.iter_mut().filter_map(|spec| spec.shape.first_mut()).for_each(|extent| *extent = None);
        }
        specs
    }

    fn specs(&self) -> Vec<InputSpec> {
        let spec = |info: &TensorInfo| InputSpec {
            name: info.name.clone(),
            element_type: info.element_type,
            shape: info.shape.clone(),
        };
        self.inputs.iter().map(spec).collect()
    }

    /// The same for one sample, where a batch that is another axis of some input (a state whose first axis counts layers) is
    /// known by the name that it has as the first axis of another.
    pub(super) fn specs_of_a_sample(&self) -> Vec<InputSpec> {
        let names = |input: &str| names_of_extents(&self.float.graph().input, input);
        let mut specs = self.specs();
        let firsts = self.inputs.iter().filter_map(|input| *names(&input.name).first()?);
        let batches: Vec<_> = firsts.chain(self.float.graph().batch_name()).collect();
        for spec in &mut specs {
            for (extent, name) in spec.shape.iter_mut().zip(names(&spec.name)).skip(1) {
                *extent = extent.or_else(|| batches.contains(&name?).then_some(1));
            }
        }
        specs
    }

    fn begins_with_time(&self, input: &TensorInfo) -> bool {
        self.float.graph().begins_with_time(&input.name)
    }

    /// The batch that the model fixes, if any. A sample is one whole call where the inputs do not agree on a batch axis
    /// (scalars, or states whose first axis counts layers) or begin with time: that is a batch of 1.
    pub fn fixed_batch(&self) -> Option<usize> {
        if self.inputs.iter().any(|input| self.begins_with_time(input)) {
            return Some(1);
        }
        let extents: BTreeSet<_> = self.inputs.iter().map(|input| input.shape.first().copied()).collect();
        match Vec::from_iter(extents)[..] {
            [Some(extent)] => extent,
            [] => None,
            _ => Some(1),
        }
    }

    /// True where a call takes one sample although the first axis has another extent: the inputs do not agree on one, or
    /// an output begins with another (a sequence whose first axis is time), be it one with the name of another axis.
    pub fn takes_whole_inputs(&self) -> bool {
        let first = |info: &TensorInfo| info.shape.first().copied().flatten();
        let graph = self.float.graph();
        let later = |name| {
            let names = self.inputs.iter().map(|input| names_of_extents(&graph.input, &input.name));
            names.into_iter().any(|names| names.iter().skip(1).any(|later| *later == Some(name)))
        };
        let begins_with_later = |output: &TensorInfo| {
            let names = names_of_extents(&graph.output, &output.name);
            names.first().copied().flatten().is_some_and(later)
        };
        match self.fixed_batch() {
            Some(1) => self.inputs.iter().any(|input| first(input).is_none_or(|extent| extent != 1)),
            Some(batch) => self
                .outputs
                .iter()
                .any(|output| first(output).is_some_and(|extent| extent != batch) || begins_with_later(output)),
            None => false,
        }
    }

    /// The axis of the batch by input, where inputs do not agree on one and the batch is free nevertheless: the axis that
    /// has its name, or an open first one. An input without such an axis is the same for all samples of a call.
    pub fn free_batch(&self) -> Option<BTreeMap<&str, Option<usize>>> {
        let graph = self.float.graph();
        // Where states of as many axes have a batch of 1 behind their layers, too, the first axis is time.
        let is_sequence = |input: &TensorInfo| {
            if self.begins_with_time(input) {
                return true;
            }
            let batch_of_1 = |other: &TensorInfo| {
                other.shape.len() == input.shape.len() && other.shape.get(1) == Some(&Some(1)) && input.shape.len() > 2
            };
            batch_of_1(input) && self.inputs.iter().any(|other| other.shape.first() != Some(&None) && batch_of_1(other))
        };
        let axis = |input: &TensorInfo| match graph.batch_name() {
            Some(name) => names_of_extents(&graph.input, &input.name).iter().position(|given| *given == Some(name)),
            None => (input.shape.first() == Some(&None)).then_some(0),
        };
        let axis = |input: &TensorInfo| axis(input).filter(|&axis| axis > 0 || !is_sequence(input));
        let axes: BTreeMap<_, _> = self.inputs.iter().map(|input| (input.name.as_str(), axis(input))).collect();
        (self.fixed_batch().is_some() && axes.values().any(Option::is_some)).then_some(axes)
    }

    /// The batch that calls are bound to, whatever is done about the shapes of the inputs.
    pub fn bound_batch(&self) -> Option<usize> {
        self.fixed_batch().filter(|_| self.free_batch().is_none())
    }

    /// Why no call takes `batch` samples; nothing where one does. `bound` are the shapes that the inputs were given.
    pub(super) fn refuses_batch(&self, batch: usize, bound: &BTreeMap<String, Vec<usize>>) -> Option<String> {
        let fixed = self.bound_batch()?;
        if self.takes_whole_inputs() {
            let why = "a call of the model takes one sample, as its inputs have no batch axis";
            (batch != 1).then(|| why.to_owned())
        } else if let Some((input, shape)) = bound.iter().find(|(_, shape)| shape.first() == Some(&fixed)) {
            let given = format!("--shape {input}={}", joined(shape));
            (batch != fixed)
                .then(|| format!("{given} fixes it to {fixed}; give each batch its own --shape, in a call of its own"))
        } else {
            (batch != fixed).then(|| format!("the model fixes its batch to {fixed}"))
        }
    }

    /// Whether a call with `batch` samples is put together here: reading stacks along the first axis.
    pub fn joins_samples(&self, batch: usize) -> bool {
        batch != self.usual_batch() && self.free_batch().is_some()
    }

    /// The inputs of one call with all `samples`; `None` where their shapes differ.
    pub fn as_one_call(&self, samples: Vec<TensorMap>) -> Option<TensorMap> {
        let shapes = |sample: &TensorMap| sample.values().map(|tensor| tensor.shape().to_vec()).collect::<Vec<_>>();
        let first = shapes(samples.first()?);
        let count = samples.len();
        let mut inputs = samples.iter().all(|sample| shapes(sample) == first).then(|| stacked(samples))?;
        for (name, axis) in self.free_batch()? {
            if let Some(tensor) = inputs.get_mut(name)
                && let Some(moved) = along(tensor, count, axis)
            {
                *tensor = moved;
            }
        }
        Some(inputs)
    }

    /// The first call of `batch` samples of what `samples` reads, with the number of samples in it; `None` where there are too
    /// few of one shape. A sample alone may be all that the model takes in a call.
    ///
    /// # Errors
    /// More samples cannot be read than the policy allows.
    pub(super) fn first_call(
        &self,
        samples: Samples<'_>,
        batch: usize,
    ) -> Result<Option<(usize, TensorMap)>, PassError> {
        if self.fixed_batch() == Some(batch) && batch > 1 {
            let is_whole = |tensor: &Tensor| tensor.shape().first() == Some(&batch);
            if let Some(whole) = samples.first(1)?.filter(|first| first.inputs.values().all(is_whole)) {
                return Ok(Some((1, whole.inputs)));
            }
        }
        let inputs = if self.joins_samples(batch) {
            let parts: Vec<_> = samples.firsts(1, batch)?.into_iter().map(|part| part.inputs).collect();
            if parts.len() == batch { self.as_one_call(parts) } else { None }
        } else {
            samples.first(batch)?.map(|first| first.inputs)
        };
        Ok(inputs.map(|inputs| (batch, inputs)))
    }

    /// The batch of a call that nobody chose.
    pub fn usual_batch(&self) -> usize {
        if self.takes_whole_inputs() { 1 } else { self.fixed_batch().unwrap_or(1) }
    }
}

impl Session {
    /// Samples in the batches that a GPU takes, where `provider` is one; on the CPU they stay as they are.
    pub(super) fn batched<'s>(&self, provider: ExecutionProvider, samples: Samples<'s>) -> Samples<'s> {
        let batch = if provider.gpu().is_some() { self.batch } else { samples.reading.batch };
        Samples { reading: PrefetchOptions { batch, ..samples.reading }, ..samples }
    }
}

/// The names of the open extents of a tensor, by axis, as the model declares it.
fn names_of_extents<'m>(declared: &'m [ValueInfoProto], tensor: &str) -> Vec<Option<&'m str>> {
    let info = declared.iter().find(|info| info.name() == tensor);
    info.map_or_else(Vec::new, ValueInfoProto::names_of_extents)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use calib_test_support::Need;

    use super::*;
    use crate::{
        backend::onnxruntime::OnnxRuntime,
        compare::OutputKind,
        dataset::{BadPolicy, RandomDataset},
        onnx::proto::{AttributeProto, DimensionValue, NodeProto, TypeValue},
        quantize::testing::TestModel,
    };

    /// Time is the first axis of what goes in, and gone from what comes out.
    #[test]
    fn a_sequence_that_becomes_a_row_is_a_whole_input() {
        let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sequence.onnx");
        let takes_whole = |names: [&str; 2]| {
            let mean = NodeProto::new("ReduceMean", "y", &["x"], &["y"]);
            let mean = mean.with(AttributeProto::ints("axes", &[0])).with(AttributeProto::int("keepdims", 0));
            let mut model = TestModel::new(17).input("x", &[12, -1, 24]).node(mean).output("y", &[-1, 24]).build();
            let graph = model.graph_mut();
            for (info, axis, name) in [(&mut graph.input[0], 1, names[0]), (&mut graph.output[0], 0, names[1])] {
                let Some(TypeValue::TensorType(tensor)) = &mut info.r#type.as_mut().unwrap().value else { panic!() };
                tensor.shape.as_mut().unwrap().dim[axis].value = Some(DimensionValue::DimParam(name.to_owned()));
            }
            model.save(&path).unwrap();
            let subject = Subject::load(runtime, &path, &BTreeMap::new()).unwrap();
            (subject.takes_whole_inputs(), subject.usual_batch())
        };
        assert_eq!(takes_whole(["n", "n"]), (true, 1));
        assert_eq!(takes_whole(["n", "m"]), (false, 12));
    }

    /// A recurrent layer tells time from the batch, and states and sequences from scores and maps.
    #[test]
    fn what_a_recurrent_layer_reads_begins_with_time() {
        let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recurrent.onnx");
        let layer = NodeProto::new("RNN", "layer", &["x", "w", "r"], &["all", "last"]);
        let layer = layer.with(AttributeProto::int("hidden_size", 4));
        let model =
            TestModel::new(17).input("x", &[-1, 1, 3]).weight("w", &[1, 4, 3]).weight("r", &[1, 4, 4]).node(layer);
        let model = model.weight("head", &[4, 5]).op("MatMul", &["last", "head"], "scores");
        model.output("scores", &[1, 1, 5]).output("last", &[1, 1, 4]).build().save(&path).unwrap();
        let subject = Subject::load(runtime, &path, &BTreeMap::new()).unwrap();
        assert!(subject.takes_whole_inputs() && subject.free_batch().is_none());
        assert_eq!((subject.usual_batch(), subject.bound_batch()), (1, Some(1)));
        let given = BTreeMap::from([("scores".to_owned(), OutputKind::Classification)]);
        let kinds = subject.kinds(&given);
        assert_eq!((kinds["scores"], kinds["last"]), (OutputKind::Classification, OutputKind::Generic));
    }

    /// A batch that --shape fixes is not one that the model fixes.
    #[test]
    fn what_fixes_the_batch_is_named() {
        let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.onnx");
        let refused = |rows: i64, bound: &BTreeMap<String, Vec<usize>>| {
            let model = TestModel::new(17).input("x", &[rows, 3]).op("Relu", &["x"], "y").output("y", &[rows, 3]);
            model.build().save(&path).unwrap();
            let subject = Subject::load(runtime, &path, bound).unwrap();
            [1, 4].map(|batch| subject.refuses_batch(batch, bound))
        };
        let none = BTreeMap::new();
        assert_eq!(refused(-1, &none), [None, None]);
        assert_eq!(refused(1, &none), [None, Some("the model fixes its batch to 1".to_owned())]);
        let [one, four] = refused(-1, &BTreeMap::from([("x".to_owned(), vec![1, 3])]));
        assert!(one.is_none() && four.unwrap().starts_with("--shape x=1x3 fixes it to 1; give each batch"));
    }

    /// A recurrent model whose first axis is time, named or not, and whose states are those of one sample.
    #[test]
    fn time_in_front_of_a_fixed_batch_of_1_is_no_batch() {
        let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("time.onnx");
        let refused = |name: Option<&str>, state: i64| {
            let model = TestModel::new(17).input("x", &[-1, state, 3]).input("s", &[2, state, 3]);
            let model = model.op("Relu", &["x"], "y").op("Relu", &["s"], "t");
            let mut model = model.output("y", &[-1, state, 3]).output("t", &[2, state, 3]).build();
            let graph = model.graph_mut();
            for info in [&mut graph.input[0], &mut graph.output[0]] {
                let Some(TypeValue::TensorType(tensor)) = &mut info.r#type.as_mut().unwrap().value else { panic!() };
                tensor.shape.as_mut().unwrap().dim[0].value =
                    name.map(|name| DimensionValue::DimParam(name.to_owned()));
            }
            model.save(&path).unwrap();
            let subject = Subject::load(runtime, &path, &BTreeMap::new()).unwrap();
            [1, 4].map(|batch| subject.refuses_batch(batch, &BTreeMap::new()).is_some())
        };
        assert_eq!(refused(Some("T"), 1), [false, true]);
        assert_eq!(refused(None, 1), [false, true]);
    }

    /// What the samples are tells what a fixed first axis counts.
    #[test]
    fn a_sample_may_be_all_that_a_call_takes() {
        let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.onnx");
        let model = TestModel::new(17).input("x", &[4, 3]).op("Relu", &["x"], "y").output("y", &[4, 3]);
        model.build().save(&path).unwrap();
        let subject = Subject::load(runtime, &path, &BTreeMap::new()).unwrap();
        let first = |whole: bool| {
            let specs = if whole { subject.specs() } else { subject.input_specs() };
            let dataset = RandomDataset::new(&specs, 8, 1).unwrap().of_whole_inputs(whole);
            let (policy, stop) = (BadPolicy { max_share: 0.0, strict: true }, AtomicBool::new(false));
            let reading = PrefetchOptions { batch: 4, threads: 1, policy, stop: &stop, skipped: &[] };
            let indices: Vec<usize> = (0..8).collect();
            let (samples, call) =
                subject.first_call(Samples { dataset: &dataset, indices: &indices, reading }, 4).unwrap().unwrap();
            (samples, call["x"].shape().to_vec())
        };
        assert_eq!(first(true), (1, vec![4, 3]));
        assert_eq!(first(false), (4, vec![4, 3]));
    }

    /// States begin with the number of layers, and a factor has no axes.
    #[test]
    fn a_batch_is_free_where_inputs_share_its_name_or_one_begins_openly() {
        let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.onnx");
        let subject = |state: &[i64], named: Option<usize>| {
            let model = TestModel::new(17).input("x", &[-1, 3]).input("s", state);
            let mut model = model.op("Relu", &["x"], "y").op("Relu", &["s"], "t").output("y", &[-1, 3]).build();
            let graph = model.graph_mut();
            for (info, axis) in [(0, Some(0)), (1, named)] {
                let kind = graph.input[info].r#type.as_mut().unwrap().value.as_mut();
                let (Some(TypeValue::TensorType(tensor)), Some(axis)) = (kind, axis) else { continue };
                let dim = &mut tensor.shape.as_mut().unwrap().dim[axis];
                dim.value = named.map(|_| DimensionValue::DimParam("n".to_owned()));
            }
            model.save(&path).unwrap();
            Subject::load(runtime, &path, &BTreeMap::new()).unwrap()
        };
        let given = |shape: &[usize]| {
            let count = shape.iter().product::<usize>();
            Tensor::from_f32(shape.to_vec(), (0..count).map(|value| value as f32).collect()).unwrap()
        };
        let call = |subject: &Subject, state: &[usize]| {
            let sample = TensorMap::from([("x".to_owned(), given(&[1, 3])), ("s".to_owned(), given(state))]);
            subject.as_one_call(vec![sample.clone(), sample]).unwrap()
        };
        let layers = subject(&[2, -1, 2], Some(1));
        assert_eq!((layers.fixed_batch(), layers.bound_batch(), layers.joins_samples(1)), (Some(1), None, false));
        let joined = call(&layers, &[2, 1, 2]);
        assert_eq!((joined["x"].shape(), joined["s"].shape()), (&[2, 3][..], &[2, 2, 2][..]));
        assert_eq!(joined["s"].to_f32(), [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0]);
        let factor = subject(&[], None);
        assert_eq!((factor.bound_batch(), factor.joins_samples(2)), (None, true));
        assert_eq!(call(&factor, &[])["s"].shape(), [0usize; 0]);
        let table = subject(&[5, 2], None);
        let joined = call(&table, &[5, 2]);
        assert_eq!((joined["s"].shape(), joined["s"].to_f32()[9]), (&[5, 2][..], 9.0));
    }
}

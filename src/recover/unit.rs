//! What of a model runs in one call: sessions for every worker, and the weight that they multiply with.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;

use super::{RecoverError, network::Operator};
use crate::{
    backend::{Backend, BackendError, BuildOptions, Purpose, Runner},
    onnx::{Model, proto::TensorProto},
    tensor::{Tensor, TensorMap, TensorView},
};

/// Name of the input, or of the constant, that is the weight of an operator.
pub(super) const WEIGHT: &str = "calib:weight";

/// Tensors of one sample on one side.
pub(super) type Lane = HashMap<String, Tensor>;

/// A session for each worker, of a single thread, so that what it computes does not depend on their number.
pub(super) struct Runners(Vec<Mutex<Box<dyn Runner>>>);

impl Runners {
    /// Sessions of `model` for the workers of the current rayon pool.
    pub fn new(backend: &dyn Backend, model: &Model) -> Result<Self, BackendError> {
        let build = BuildOptions { threads: 1, purpose: Purpose::Part, ..BuildOptions::default() };
        let workers = (0..rayon::current_num_threads()).into_par_iter();
        workers.map(|_| Ok(Mutex::new(backend.build(model, &build)?))).collect::<Result<_, _>>().map(Self)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What `run` does with the session of this worker.
    pub fn with<T>(&self, run: impl FnOnce(&mut dyn Runner) -> T) -> T {
        let worker = rayon::current_thread_index().unwrap_or(0) % self.0.len();
        run(&mut **self.0[worker].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a unit multiplies with, and the sessions that do.
#[derive(Clone)]
pub(super) struct Bound {
    runners: Arc<Runners>,
    /// The weight where it is an input: one session serves every rounding of it.
    weight: TensorMap,
}

/// What runs in one call.
pub(super) struct Unit<'a> {
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub operator: Option<Operator>,
    /// With the weight as it is in float.
    pub exact: Bound,
    constant: Option<Constant<'a>>,
}

/// A part whose weight is a constant of its sessions: ONNX Runtime computes convolutions of groups 2 to 17 times as fast then.
struct Constant<'a> {
    backend: &'a dyn Backend,
    part: Model,
    /// The last weight that was asked for.
    last: Mutex<Option<(Tensor, Arc<Runners>)>>,
}

impl Constant<'_> {
    fn with(&self, weight: &Tensor) -> Result<Arc<Runners>, BackendError> {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, runners)) = last().as_ref().filter(|(known, _)| known == weight) {
            return Ok(runners.clone());
        }
        // Nothing is locked meanwhile: a worker that waits for parts of the building does other work, which may ask for the same.
        let mut part = self.part.clone();
        part.graph_mut().initializer.push(TensorProto::from_tensor(WEIGHT, weight.clone()));
        let runners = Arc::new(Runners::new(self.backend, &part)?);
        let _former = last().replace((weight.clone(), runners.clone()));
        Ok(runners)
    }
}

impl<'a> Unit<'a> {
    /// Runs `part`, which takes its weight as an input if it has one.
    pub fn new(
        backend: &'a dyn Backend,
        mut part: Model,
        inputs: Vec<String>,
        outputs: Vec<String>,
        operator: Option<Operator>,
    ) -> Result<Self, RecoverError> {
        let weight = operator.as_ref().and_then(|operator| operator.weight.as_ref());
        let (exact, constant) = match (weight, &operator) {
            (Some(weight), Some(operator)) if operator.is_grouped() => {
                part.graph_mut().input.retain(|input| input.name() != WEIGHT);
                let constant = Constant { backend, part, last: Mutex::new(None) };
                (Bound { runners: constant.with(&weight.tensor)?, weight: TensorMap::new() }, Some(constant))
            }
            _ => {
                let weight = weight.map(|weight| (WEIGHT.to_owned(), weight.tensor.clone()));
                (Bound { runners: Arc::new(Runners::new(backend, &part)?), weight: weight.into_iter().collect() }, None)
            }
        };
        Ok(Self { inputs, outputs, operator, exact, constant })
    }

    /// With a `weight` other than in float; without any where there is none.
    pub fn bound(&self, weight: Option<&Tensor>) -> Result<Bound, RecoverError> {
        Ok(match (weight, &self.constant) {
            (None, _) => self.exact.clone(),
            (Some(weight), Some(constant)) => Bound { runners: constant.with(weight)?, weight: TensorMap::new() },
            (Some(weight), None) => {
                let weight = TensorMap::from([(WEIGHT.to_owned(), weight.clone())]);
                Bound { runners: self.exact.runners.clone(), weight }
            }
        })
    }

    /// Runs with tensors of `values` and, in their place, with `given`.
    pub fn run(&self, values: &Lane, bound: &Bound, given: TensorMap) -> Result<TensorMap, RecoverError> {
        self.with(values, bound, given, |runner, inputs| runner.infer(inputs))
    }

    /// The same, and shows the results where they lie.
    pub fn visit(
        &self,
        values: &Lane,
        bound: &Bound,
        given: TensorMap,
        mut look: impl FnMut(TensorView<'_>),
    ) -> Result<(), RecoverError> {
        self.with(values, bound, given, |runner, inputs| {
            runner.visit(inputs, &mut |_, view| {
                look(view);
                Ok(())
            })
        })
    }

    fn with<T>(
        &self,
        values: &Lane,
        bound: &Bound,
        mut inputs: TensorMap,
        run: impl FnOnce(&mut dyn Runner, &TensorMap) -> Result<T, BackendError>,
    ) -> Result<T, RecoverError> {
        for name in &self.inputs {
            if let (false, Some(tensor)) = (inputs.contains_key(name), values.get(name)) {
                inputs.insert(name.clone(), tensor.clone());
            }
        }
        inputs.extend(bound.weight.clone());
        Ok(bound.runners.with(|runner| run(runner, &inputs))?)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;
    use crate::{
        backend::{TensorInfo, Visit},
        quantize::testing::TestModel,
    };

    /// Takes its time, so that workers wait for each other.
    struct Slow;

    impl Backend for Slow {
        fn build(&self, _: &Model, _: &BuildOptions) -> Result<Box<dyn Runner>, BackendError> {
            thread::sleep(Duration::from_millis(1));
            Ok(Box::new(Self))
        }
    }

    impl Runner for Slow {
        fn inputs(&self) -> &[TensorInfo] {
            &[]
        }

        fn outputs(&self) -> &[TensorInfo] {
            &[]
        }

        fn visit(&mut self, _: &TensorMap, _: &mut Visit<'_>) -> Result<(), BackendError> {
            Ok(())
        }
    }

    /// A worker that waits for sessions which others build takes up what asks for the same ones.
    #[test]
    fn workers_that_build_sessions_do_not_wait_for_themselves() {
        let (ended, end) = mpsc::channel();
        thread::spawn(move || {
            let constant = || Constant { backend: &Slow, part: TestModel::new(17).build(), last: Mutex::new(None) };
            let constants: Vec<_> = (0..4).map(|_| constant()).collect();
            let weights = [1.0, 2.0].map(|value| Tensor::from_f32(vec![1], vec![value]).unwrap());
            let ask = |index: usize| constants[index % 4].with(&weights[index / 4 % 2]).map(drop);
            let asked = || (0..4).into_par_iter().all(|_| (0..64).into_par_iter().all(|index| ask(index).is_ok()));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(8).build().unwrap();
            ended.send(pool.install(asked)).unwrap();
        });
        assert_eq!(end.recv_timeout(Duration::from_mins(1)), Ok(true));
    }
}

//! The comparison of outputs that lie on a device: sums and best classes are computed there. Maps of classes, outputs
//! that may join unlike parts, and those that are not floating-point numbers, come to the host.

use super::{
    CompareError, Comparison, PairSums, Sample,
    agreement::Best,
    driver::{Batch, Output, find, row},
    task::Task,
};
use crate::{
    backend::{Accelerator, DeviceView, Pair, Tensors},
    tensor::{TensorMap, TensorView},
};

type Views<'a> = [(&'a str, DeviceView<'a>)];

impl Comparison {
    /// Outputs that both lie on `device`.
    pub(super) fn push_there(
        &mut self,
        samples: &[Sample<'_>],
        device: &dyn Accelerator,
        [reference, target]: [&Views<'_>; 2],
    ) -> Result<(), CompareError> {
        let mut host: Option<(TensorMap, TensorMap)> = None;
        self.push_batch(samples, |output, batch| {
            let (name, theirs) = (output.pair.reference.clone(), output.pair.target.clone());
            let r = find(reference, &name, "reference")?;
            let t = find(target, &theirs, "target")?;
            let floats = r.element_type().is_float() && t.element_type().is_float();
            if floats {
                output.push_views(batch, r, t, device)?;
            }
            let parts = r.row(0, samples.len()).is_some_and(|sample| output.has_parts(sample.shape()));
            if floats && !parts && !matches!(output.task, Some(Task::Map(_))) {
                return Ok(());
            }
            let (reference, target) = match &mut host {
                Some(both) => both,
                none => none.insert((device.to_host(reference)?, device.to_host(target)?)),
            };
            let view = |tensors, name, side| match Tensors::from(tensors) {
                Tensors::Host(views) => find(&views, name, side),
                Tensors::Device(..) => find(&[], name, side),
            };
            let (r, t) = (view(&*reference, &name, "reference")?, view(&*target, &theirs, "target")?);
            if floats { output.push_host(batch, r, t, parts) } else { output.push(batch, r, t) }
        })
    }
}

fn rows<'a>(output: &str, view: DeviceView<'a>, samples: usize) -> Result<Vec<DeviceView<'a>>, CompareError> {
    let rows: Option<_> = (0..samples).map(|index| view.row(index, samples)).collect();
    let (output, shape) = (output.to_owned(), view.shape().to_vec());
    rows.ok_or(CompareError::Batch { output, shape, samples })
}

impl Output {
    /// Sums and best classes.
    fn push_views(
        &mut self,
        batch: &Batch<'_>,
        reference: DeviceView<'_>,
        target: DeviceView<'_>,
        device: &dyn Accelerator,
    ) -> Result<(), CompareError> {
        let count = batch.samples.len();
        let (r, t) = (rows(&self.pair.reference, reference, count)?, rows(&self.pair.reference, target, count)?);
        if r.iter().map(DeviceView::shape).ne(t.iter().map(DeviceView::shape)) {
            return Err(self.shapes_differ(reference.shape(), target.shape()));
        }
        let pair = |(&reference, &target): (&_, &_)| Pair { reference, target, threshold: f32::INFINITY };
        let pairs: Vec<Pair<'_>> = r.iter().zip(&t).map(pair).collect();
        for pieces in device.sums(&pairs)? {
            let mut sums = PairSums::default();
            for piece in &pieces {
                sums.add(&PairSums::of_piece(piece));
            }
            self.add(&sums);
        }
        let Some(first) = r.first() else { return Ok(()) };
        let Task::Classification(task) = self.task(batch, first.element_type(), first.shape()) else { return Ok(()) };
        let k = task.longest();
        let best = |rows: &[DeviceView<'_>]| -> Result<Vec<Best>, CompareError> {
            Ok(device.top_k(rows, k)?.into_iter().map(Best::from).collect())
        };
        let scores = first.len();
        let mut pushed = best(&r)?.into_iter().zip(best(&t)?).enumerate();
        let failed = pushed.find_map(|(index, (r, t))| Some((index, task.push(batch, index, scores, &r, &t).err()?)));
        failed.map_or(Ok(()), |(index, reason)| Err(self.misfit(batch, index, reason)))
    }

    /// Maps of classes and parts of outputs, whose sums as a whole were added before.
    fn push_host(
        &mut self,
        batch: &Batch<'_>,
        reference: TensorView<'_>,
        target: TensorView<'_>,
        parts: bool,
    ) -> Result<(), CompareError> {
        let count = batch.samples.len();
        for index in 0..count {
            let r = row(reference, &self.pair.reference, index, count)?;
            let t = row(target, &self.pair.reference, index, count)?;
            if let Some(Task::Map(map)) = &mut self.task {
                let pushed = map.push(batch, index, r, t);
                pushed.map_err(|reason| self.misfit(batch, index, reason))?;
            }
            if parts {
                self.parts.of(batch.samples[index].id).push(r, t);
            }
        }
        Ok(())
    }
}

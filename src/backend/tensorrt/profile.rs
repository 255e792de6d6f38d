//! What batches an engine takes, found by asking it, since the binding (trtx 0.9.1) shows no profiles.

use trtx::trtx_sys::Dims64;

use crate::{backend::TensorInfo, tensor::TensorMap};

/// Profiles that begin above this are not looked for.
const MOST: usize = 1024;

/// The least batch that the engine's profile allows. Inputs whose profile allows no other get it as their extent, as if the
/// model had fixed it. What the context refuses on the way, it logs: the caller has the turn.
pub(super) fn least_batch(context: &mut trtx::ExecutionContext<'static>, inputs: &mut [TensorInfo]) -> usize {
    let of_samples = |info: &&mut TensorInfo| matches!(&info.shape[..], [None, rest @ ..] if !rest.contains(&None));
    let mut open: Vec<&mut TensorInfo> = inputs.iter_mut().filter(of_samples).collect();
    let mut takes = |batch: usize| {
        open.iter().all(|info| {
            let extents: Vec<i64> = info.shape.iter().map(|extent| extent.unwrap_or(batch) as i64).collect();
            context.set_input_shape(&info.name, &Dims64::from_slice(&extents)).is_ok()
        })
    };
    let least = (1..=MOST).find(|&batch| takes(batch)).unwrap_or(1);
    if least > 1 && !takes(least + 1) {
        for info in &mut open {
            info.shape[0] = Some(least);
        }
    }
    least
}

/// The least batch that the engine's profile allows of samples like these `inputs`, from as many as they are; `None` where
/// it takes them as they are, where they do not tell the number of samples, or where it takes no batch of such samples.
pub(super) fn least_batch_for(
    context: &mut trtx::ExecutionContext<'static>,
    infos: &[TensorInfo],
    inputs: &TensorMap,
) -> Option<usize> {
    let mut samples = infos.iter().map(|info| {
        let first = inputs.get(&info.name)?.shape().first().copied();
        first.filter(|_| info.shape.first() == Some(&None))
    });
    let given = samples.next()??;
    if !samples.all(|samples| samples == Some(given)) {
        return None;
    }
    let mut takes = |batch: usize| {
        infos.iter().all(|info| {
            let rest = inputs[&info.name].shape().iter().skip(1).map(|&extent| extent as i64);
            let extents: Vec<i64> = std::iter::once(batch as i64).chain(rest).collect();
            context.set_input_shape(&info.name, &Dims64::from_slice(&extents)).is_ok()
        })
    };
    if takes(given) { None } else { (given + 1..=MOST).find(|&batch| takes(batch)) }
}

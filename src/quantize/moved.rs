//! What recovery moved, read back from a model: the float model with the same activations equalized and shifted.

use std::collections::BTreeMap;

use super::{
    QuantizeError, SchemeOptions,
    equalize::EQUALIZED,
    facts::Facts,
    move_values, place,
    shift::{SHIFTED, clip},
};
use crate::{
    backend::TensorInfo,
    calibrate::{Equalized, Recovered, Shift},
    onnx::{GraphView, Model, proto::NodeProto},
};

/// `model` in float with the values where `target`, which [`quantize`](super::quantize) made of it, has them. Both have the same
/// operator set; a target of others is left by itself.
///
/// # Errors
/// A malformed graph.
pub fn moved_like(
    model: &Model,
    shapes: &BTreeMap<String, TensorInfo>,
    target: &Model,
) -> Result<Model, QuantizeError> {
    let recovered = {
        let (facts, view) = (Facts::new(model.graph(), shapes)?, GraphView::new(target.graph())?);
        let mut recovered = Recovered::default();
        let made = model.graph().node.iter().flat_map(|node| &node.output);
        let given = model.graph().input.iter().map(|input| input.name().to_owned());
        for tensor in made.cloned().chain(given).filter(|tensor| !tensor.is_empty()) {
            let equalized = factors(&view, &tensor);
            if let Some(offset) = offset(&facts, &view, &tensor, equalized.is_some()) {
                recovered.shifts.insert(tensor.clone(), Shift { offset, amax: 0.0 });
            }
            recovered.equalized.extend(equalized.map(|factors| (tensor, factors)));
        }
        recovered
    };
    let (mut moved, mut shapes) = (model.clone(), shapes.clone());
    if !(recovered.shifts.is_empty() && recovered.equalized.is_empty()) {
        let mut placement = place(model, &shapes, &SchemeOptions::default())?;
        move_values(&mut moved, &mut shapes, &mut placement, &BTreeMap::new(), &recovered)?;
    }
    Ok(moved)
}

/// The node that makes what `tensor` became.
fn became<'a>(target: &GraphView<'a>, tensor: &str, suffix: &str) -> Option<&'a NodeProto> {
    target.producer(&format!("{tensor}_{suffix}")).map(|id| target.node(id))
}

/// Values of a constant that `node` reads.
fn constant(target: &GraphView<'_>, node: &NodeProto, input: usize) -> Option<Vec<f32>> {
    Some(target.initializer(node.input.get(input)?)?.to_tensor().ok()?.to_f32())
}

/// By what the channels of `tensor` are multiplied.
fn factors(target: &GraphView<'_>, tensor: &str) -> Option<Equalized> {
    let node = became(target, tensor, EQUALIZED).filter(|node| node.op_type() == "Mul" && node.input[0] == tensor)?;
    let exponent = |factor: f32| (0..=Equalized::MOST).find(|&exponent| f32::from(1u16 << exponent) == factor);
    constant(target, node, 1)?.into_iter().map(exponent).collect::<Option<_>>().map(Equalized)
}

/// What is subtracted from `tensor`: by a `Sub`, or within the bounds of the clip that makes it.
fn offset(facts: &Facts<'_>, target: &GraphView<'_>, tensor: &str, equalized: bool) -> Option<f32> {
    let tensor = if equalized { format!("{tensor}_{EQUALIZED}") } else { tensor.to_owned() };
    let node = became(target, &tensor, SHIFTED)?;
    let first = |input: usize| constant(target, node, input)?.first().copied();
    match node.op_type() {
        "Sub" if node.input[0] == tensor => first(1),
        "Clip" => {
            let (.., bounds) = clip(facts, &tensor)?;
            bounds.into_iter().enumerate().find_map(|(index, bound)| Some(bound? - first(index + 1)?))
        }
        _ => None,
    }
}

//! Local errors on the fixture, against NumPy in 64-bit floats, and with planted faults.

use super::*;
use crate::{
    analyse::fixture::{self, Data},
    compare::Part as OutputPart,
    dataset::PrefetchOptions,
    onnx::proto::TypeValue,
    quantize::{
        QuantizeOptions, quantize,
        testing::{TestModel, no_shapes, table},
    },
};

const INDICES: [usize; 4] = [0, 1, 2, 3];

fn samples(data: &Data) -> Samples<'_> {
    Samples { dataset: data, indices: &INDICES, reading: fixture::READING }
}

fn layers(quantized: &Model, operators_per_pass: usize) -> Option<Vec<LayerError>> {
    let runtime = fixture::runtime()?;
    let float = fixture::float();
    let pair = Pair::new(&float, quantized).unwrap();
    let options = LayerwiseOptions { operators_per_pass, threads: 1, ..LayerwiseOptions::default() };
    Some(layerwise(&runtime, &pair, samples(&Data(4)), options).unwrap().0)
}

fn close(found: Option<f64>, expected: f64) -> bool {
    found.is_some_and(|found| (found - expected).abs() < 0.02)
}

#[test]
fn local_errors_match_numpy() {
    let Some(layers) = layers(&fixture::quantized(), 128) else { return };
    // All, weights only, activations only; the worst channel and its share.
    let expected = [
        ("first", [45.4964, 48.6119, 48.7160], Some((3, 0.149_610_6))),
        ("second", [39.2394, 50.0967, 39.6826], Some((6, 0.190_421_7))),
        ("join", [41.8576, f64::NAN, 41.8576], None),
        ("head", [40.4003, 58.4695, 40.6053], Some((1, 0.454_336_5))),
    ];
    assert_eq!(layers.len(), expected.len());
    for (layer, (node, [all, weights, activations], worst)) in layers.iter().zip(expected) {
        assert_eq!(layer.node, node);
        assert!(close(layer.layerwise_sqnr_db, all), "{layer:?}");
        assert!(
            close(layer.weight_sqnr_db, weights) || weights.is_nan() && layer.weight_sqnr_db.is_none(),
            "{layer:?}"
        );
        assert!(close(layer.activation_sqnr_db, activations), "{layer:?}");
        let found = layer.worst_channel.map(|w| (w.channel, w.noise_share));
        assert_eq!(found.map(|w| w.0), worst.map(|w| w.0));
        assert!((found.map_or(0.0, |w| w.1) - worst.map_or(0.0, |w| w.1)).abs() < 0.01, "{found:?}");
        assert!(layer.dead_channels.is_empty());
    }
    let input = &layers[1].activations[0];
    assert_eq!((input.tensor.as_str(), input.producer.as_deref()), ("first_relu", Some("Relu")));
    assert!((input.noise.unwrap() / 0.056_972_5 - 1.0).abs() < 1e-3);
    assert_eq!((input.saturated, input.saturation_noise), (0.0, 0.0));
    let outlier = input.outlier.unwrap();
    assert_eq!(outlier.channel, 3);
    assert!((outlier.amax - 3.197_945).abs() < 1e-5 && (outlier.median_amax - 2.354_448).abs() < 1e-5, "{outlier:?}");
    // The shortcut is the same tensor through the same quantizer.
    assert_eq!(layers[2].activations[0], *input);
}

#[test]
fn passes_of_any_size_give_the_same() {
    let quantized = fixture::quantized();
    assert_eq!(layers(&quantized, 1), layers(&quantized, 4));
}

#[test]
fn batches_of_any_size_give_the_same_but_for_rounding() {
    let Some(runtime) = fixture::runtime() else { return };
    let (mut float, quantized) = (fixture::float(), fixture::quantized());
    let Some(TypeValue::TensorType(input)) = &mut float.graph_mut().input[0].r#type.as_mut().unwrap().value else {
        panic!("the input is not a tensor");
    };
    input.shape.as_mut().unwrap().dim[0].value = None;
    let pair = Pair::new(&float, &quantized).unwrap();
    let layers = |batch| {
        let reading = PrefetchOptions { batch, ..fixture::READING };
        let samples = Samples { dataset: &Data(4), indices: &INDICES, reading };
        let (layers, fitting_batch) = layerwise(&runtime, &pair, samples, LayerwiseOptions::default()).unwrap();
        assert_eq!(fitting_batch, None);
        layers
    };
    for (three, one) in layers(3).iter().zip(layers(1)) {
        let near = |a: Option<f64>, b: Option<f64>| a.unwrap_or(0.0) - b.unwrap_or(0.0);
        let sqnr = near(three.layerwise_sqnr_db, one.layerwise_sqnr_db);
        assert!(sqnr.abs() < 1e-3 && one.layerwise_sqnr_db.is_some(), "{three:?} is not {one:?}");
        assert_eq!(three.worst_channel.map(|worst| worst.channel), one.worst_channel.map(|worst| worst.channel));
        for (three, one) in three.activations.iter().zip(&one.activations) {
            let outlier = |error: &ActivationError| error.outlier.map(|outlier| (outlier.channel, outlier.amax));
            assert_eq!((three.saturated, outlier(three)), (one.saturated, outlier(one)));
        }
    }
}

#[test]
fn a_scale_thirty_times_too_large_is_rounding_of_that_input() {
    let fault = fixture::quantized_with(
        &mut |tensor, scale| {
            if tensor == "flat" {
                *scale *= 30.0;
            }
        },
        &mut |_, _, _| {},
    );
    let Some(layers) = layers(&fault, 128) else { return };
    let worst = layers.iter().min_by(|a, b| a.layerwise_sqnr_db.unwrap().total_cmp(&b.layerwise_sqnr_db.unwrap()));
    let worst = worst.unwrap();
    assert_eq!(worst.node, "head");
    assert!(worst.activation_sqnr_db.unwrap() < 20.0 && close(worst.weight_sqnr_db, 58.4695), "{worst:?}");
    assert_eq!(worst.activations[0].saturation_noise, 0.0);
}

#[test]
fn a_scale_too_small_is_saturation() {
    let fault = fixture::quantized_with(
        &mut |tensor, scale| {
            if tensor == "first_relu" {
                *scale *= 0.25;
            }
        },
        &mut |_, _, _| {},
    );
    let Some(layers) = layers(&fault, 128) else { return };
    let input = &layers[1].activations[0];
    assert!(input.saturation_noise > 0.99 && input.saturated > 0.05, "{input:?}");
}

#[test]
fn a_zeroed_weight_channel_is_named() {
    let fault = fixture::quantized_with(&mut |_, _| {}, &mut |name, shape, codes| {
        if name == "second.w" {
            let length = codes.len() / shape[0];
            codes[5 * length..6 * length].fill(0);
        }
    });
    let Some(layers) = layers(&fault, 128) else { return };
    let worst = &layers[1];
    assert!(worst.weight_sqnr_db.unwrap() < 15.0 && close(worst.activation_sqnr_db, 39.6826), "{worst:?}");
    let channel = worst.worst_channel.unwrap();
    assert_eq!((channel.channel, channel.of), (5, 8));
    assert!(channel.noise_share > 0.9);
    assert!(layers.iter().all(|layer| layer.node == "second" || layer.layerwise_sqnr_db.unwrap() > 35.0));
}

#[test]
fn noise_at_the_outputs_ranks_the_planted_fault_first() {
    let Some(runtime) = fixture::runtime() else { return };
    let float = fixture::float();
    let fault = fixture::quantized_with(
        &mut |tensor, scale| {
            if tensor == "x" {
                *scale *= 30.0;
            }
        },
        &mut |_, _, _| {},
    );
    let pair = Pair::new(&float, &fault).unwrap();
    let nodes: Vec<String> = pair.operators.iter().map(|operator| operator.node.clone()).collect();
    let one_thread = OutputNoiseOptions { threads: 1, ..OutputNoiseOptions::default() };
    let outputs = output_noise(&runtime, &pair, &nodes, samples(&Data(4)), &one_thread).unwrap();
    let noise = |node: &str| outputs.iter().find(|output| output.node == node).unwrap().relative_noise.unwrap();
    assert!(["second", "join", "head"].iter().all(|other| noise("first") > 10.0 * noise(other)), "{outputs:?}");
    assert!(matches!(
        output_noise(
            &runtime,
            &pair,
            &nodes,
            Samples { dataset: &Data(0), indices: &[], reading: fixture::READING },
            &one_thread
        ),
        Err(AnalysisError::NoSamples)
    ));
}

/// An output that joins boxes in pixels and scores: the input of the scores' convolution has a range that is 40 times too
/// wide, which the noise of the whole output does not show.
#[test]
fn noise_on_scores_does_not_drown_in_boxes() {
    let Some(runtime) = fixture::runtime() else { return };
    let mut float = TestModel::new(17)
        .input("x", &[1, 3, 8, 8])
        .weight("w", &[8, 3, 3, 3])
        .weight("v", &[8, 3, 3, 3])
        .weight("pixels", &[1])
        .op("Conv", &["x", "w"], "boxes")
        .op("Sigmoid", &["x"], "positive")
        .op("Conv", &["positive", "v"], "scores")
        .op("Div", &["boxes", "pixels"], "scaled")
        .op("Concat", &["scaled", "scores"], "y")
        .output("y", &[1, 16, 6, 6])
        .build();
    let graph = float.graph_mut();
    graph.node[4].attribute.push(crate::onnx::proto::AttributeProto::int("axis", 1));
    let small = crate::tensor::Tensor::from_f32(vec![1], vec![0.001]).unwrap();
    graph.initializer[2] = crate::onnx::proto::TensorProto::from_tensor("pixels", small);
    let ranges = table(&[("x", 1.0), ("positive", 40.0)]);
    let quantized = quantize(&float, &no_shapes(), Some(&ranges), &QuantizeOptions::default()).unwrap();
    let pair = Pair::new(&quantized.float, &quantized.model).unwrap();
    let nodes = ["boxes", "scores"].map(str::to_owned);
    let parts = [OutputPart::new("boxes", 0, 0..8), OutputPart::new("scores", 0, 8..16)];
    let known = OutputNoiseOptions { parts: [("y".to_owned(), parts.to_vec())].into(), ..Default::default() };
    // By what the head says, and by the size of the values where nothing is known.
    for options in [known, OutputNoiseOptions::default()] {
        let found = output_noise(&runtime, &pair, &nodes, samples(&Data(4)), &options).unwrap();
        let [boxes, scores] = [&found[0], &found[1]].map(|found| found.sqnr_db.unwrap());
        assert!(boxes > 30.0 && scores < 25.0, "{found:?}");
    }
}

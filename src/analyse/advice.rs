//! What a specialist would say about the figures: a few sentences, each from something measured, with the command.

use serde::{Deserialize, Serialize};

use super::layerwise::{ActivationError, LayerError, OutputNoise};

/// How much a piece of advice matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AdviceLevel {
    /// Good to know.
    Info,
    /// May cost accuracy or speed.
    Warning,
    /// Costs accuracy or speed here.
    Problem,
}

/// Something to know or to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Advice {
    /// How much it matters.
    #[serde(alias = "importance")]
    pub level: AdviceLevel,
    /// What was measured and what follows, in a sentence or two.
    pub text: String,
    /// Nodes it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// A command that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// Beginnings of the commands to recommend, with the user's own model and data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commands {
    /// `calib run --model ... --data ...`.
    pub run: String,
    /// `calib bisect --model ... --data ... --gate ...`.
    pub bisect: String,
    /// `calib quantize --model ... --table ...`.
    pub quantize: String,
}

/// Operators whose causes are told.
const TOLD: usize = 3;
/// Share of the noise from which one cause is *the* cause.
const DOMINANT: f64 = 0.6;
/// A channel this many times larger than the median one is an outlier.
const OUTLIER: f64 = 8.0;

/// One way to choose ranges, and the SQNR in decibels of the worst output with them.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    /// Its name.
    pub name: String,
    /// Infinite when the outputs are equal.
    pub sqnr_db: f64,
}

/// Which way to choose ranges won, measured on `samples` held-out samples.
pub fn about_method(chosen: &str, ways: &[Way], samples: usize) -> Option<Advice> {
    let won = ways.iter().find(|way| way.name == chosen)?;
    let others = ways.iter().filter(|way| way.name != chosen);
    let next = others.max_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db))?;
    let (ours, theirs, name, count) = (won.sqnr_db, next.sqnr_db, &next.name, ways.len());
    let text = if ours >= theirs {
        format!(
            "of {count} ways to choose ranges, {chosen} came nearest to the float model on {samples} held-out samples: \
             SQNR {ours:.1} dB, against {theirs:.1} dB of {name}, the next best"
        )
    } else {
        format!(
            "of {count} ways to choose ranges, {chosen} was taken: SQNR {ours:.1} dB on {samples} held-out samples; the \
             lead of {name}, with {theirs:.1} dB, is too small to be more than chance"
        )
    };
    Some(Advice { level: AdviceLevel::Info, text, nodes: Vec::new(), command: None })
}

/// What lifting a few nodes did to the outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LiftEffect {
    /// The nodes.
    pub nodes: Vec<String>,
    /// SQNR of the worst output in decibels before and after; infinite when equal.
    pub sqnr_db: [f64; 2],
    /// Samples measured on.
    pub samples: usize,
}

/// What lifting the worst nodes would give; `lift` is the higher precision's name.
pub fn about_lift(effect: &LiftEffect, lift: &str, commands: &Commands) -> Advice {
    let [before, after] = effect.sqnr_db;
    let [before, after] = [(before, ""), (after, " dB")].map(|(db, unit)| match db {
        f64::INFINITY => "infinite".to_owned(),
        // What is not finite has no ratio.
        f64::NEG_INFINITY => "NaN".to_owned(),
        db => format!("{db:.1}{unit}"),
    });
    let nodes: Vec<String> = effect.nodes.iter().map(|node| format!("`{node}`")).collect();
    Advice {
        level: AdviceLevel::Info,
        text: format!(
            "lifting {} to {lift} changes the SQNR of the outputs from {before} to {after} ({} samples)",
            listed(&nodes),
            effect.samples
        ),
        nodes: effect.nodes.clone(),
        command: Some(commands.bisect.clone()),
    }
}

/// What the last convolutions and products of a detector's head cost.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadEffect {
    /// The nodes.
    pub nodes: Vec<String>,
    /// SQNR of the worst part of the outputs in decibels with all of the model quantized, without `nodes`, and with `nodes`
    /// alone; infinite when equal.
    pub sqnr_db: [f64; 3],
    /// Share of the reference's boxes that are found, in the same order.
    pub recall: [f64; 3],
    /// Samples measured on.
    pub samples: usize,
}

/// Decibels by which the outputs must come nearer for the head to be worth lifting.
const HEAD_MATTERS_DB: f64 = 1.0;

/// What the last convolutions and products cost, and whether lifting them to `lift` helps.
pub fn about_head(effect: &HeadEffect, lift: &str, commands: &Commands) -> Advice {
    let db = |db: f64| if db == f64::INFINITY { "no error".to_owned() } else { format!("{db:.1} dB") };
    let [whole, without, alone] = effect.sqnr_db.map(db);
    let [found, found_without, found_alone] = effect.recall.map(percent);
    let nearer = effect.sqnr_db[1] - effect.sqnr_db[0] >= HEAD_MATTERS_DB;
    let matters = nearer && effect.recall[1] > effect.recall[0];
    let last = match effect.nodes.len() {
        1 => format!("the last convolution or product of the head (`{}`)", effect.nodes[0]),
        count => format!("the {count} last convolutions and products of the head (`{}` and others)", effect.nodes[0]),
    };
    let consequence = if matters {
        "lift them in a plan"
    } else if nearer {
        "that finds no more boxes, so nothing is gained by lifting them"
    } else {
        "what costs accuracy lies before them, so lifting them does not help"
    };
    Advice {
        level: if matters { AdviceLevel::Warning } else { AdviceLevel::Info },
        text: format!(
            "{last}, quantized alone, leave the outputs at {alone} ({found_alone} of the boxes found); with them in {lift} \
             the whole goes from {whole} ({found}) to {without} ({found_without}), on {} samples: {consequence}",
            effect.samples
        ),
        nodes: effect.nodes.clone(),
        command: matters.then(|| commands.bisect.clone()),
    }
}

/// The operators that cost most, the worst first, with their noise.
fn ranked(outputs: &[OutputNoise]) -> Vec<(&OutputNoise, f64)> {
    let mut ranked: Vec<(&OutputNoise, f64)> =
        outputs.iter().filter_map(|output| Some((output, output.relative_noise?))).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

/// The nodes that [`about_layers`] tells about.
pub fn told(outputs: &[OutputNoise]) -> Vec<String> {
    ranked(outputs).into_iter().take(TOLD).map(|(output, _)| output.node.clone()).collect()
}

/// Sentences about the operators that cost most: which, and why each of them.
pub fn about_layers(layers: &[LayerError], outputs: &[OutputNoise], commands: &Commands) -> Vec<Advice> {
    let ranked = ranked(outputs);
    let total: f64 = ranked.iter().map(|(_, noise)| noise).sum();
    if total <= 0.0 {
        return Vec::new();
    }
    let top = &ranked[..ranked.len().min(TOLD)];
    let named: Vec<String> =
        top.iter().map(|(output, noise)| format!("`{}` ({})", output.node, percent(noise / total))).collect();
    let share = top.iter().map(|(_, noise)| noise).sum::<f64>() / total;
    let mut advice = vec![Advice {
        level: if share > DOMINANT { AdviceLevel::Warning } else { AdviceLevel::Info },
        text: format!(
            "of the noise that the {} measured operators send to the outputs when each is quantized alone, {} comes \
             from {}",
            ranked.len(),
            percent(share),
            listed(&named)
        ),
        nodes: top.iter().map(|(output, _)| output.node.clone()).collect(),
        command: Some(commands.bisect.clone()),
    }];
    let layer = |node: &str| layers.iter().find(|layer| layer.node == node);
    advice.extend(top.iter().filter_map(|(output, _)| cause(layer(&output.node)?, commands)));
    advice.extend(dead_channels(layers));
    advice
}

/// Why one operator is bad.
fn cause(layer: &LayerError, commands: &Commands) -> Option<Advice> {
    let noise = |sqnr_db: Option<f64>| sqnr_db.map_or(0.0, |db| 10f64.powf(-db / 10.0));
    let (weights, activations) = (noise(layer.weight_sqnr_db), noise(layer.activation_sqnr_db));
    let of_weights = weights / (weights + activations).max(f64::MIN_POSITIVE);
    let node = &layer.node;
    let advice = |text: String, command: &str| {
        Some(Advice { level: AdviceLevel::Warning, text, nodes: vec![node.clone()], command: Some(command.to_owned()) })
    };
    if of_weights >= DOMINANT {
        let share = format!("the weights of `{node}` make {} of its error", percent(of_weights));
        return match layer.worst_channel.filter(|worst| worst.noise_share >= DOMINANT) {
            Some(worst) => advice(
                format!(
                    "{share}, and output channel {} of {} alone carries {}; look at that channel's weights and scale",
                    worst.channel,
                    worst.of,
                    percent(worst.noise_share)
                ),
                &commands.bisect,
            ),
            None => advice(format!("{share}; lifting it helps, and no range of its input would"), &commands.bisect),
        };
    }
    let input = layer.activations.iter().max_by(|a, b| a.noise.unwrap_or(0.0).total_cmp(&b.noise.unwrap_or(0.0)))?;
    let (text, command) = activation_cause(input, commands)?;
    advice(format!("`{node}` suffers from its input `{}`: {text}", input.tensor), command)
}

/// Why a quantized activation is bad; `None` when nothing about it stands out.
fn activation_cause<'a>(input: &ActivationError, commands: &'a Commands) -> Option<(String, &'a str)> {
    if input.saturation_noise >= DOMINANT {
        return Some((
            format!(
                "{} of its values are clipped, which makes {} of its noise; a wider range costs less",
                percent(input.saturated),
                percent(input.saturation_noise)
            ),
            &commands.run,
        ));
    }
    let outlier = input.outlier.filter(|outlier| outlier.amax > OUTLIER * outlier.median_amax)?;
    let wide =
        if input.producer.as_deref() == Some("Concat") { "the Concat before it joins ranges that" } else { "they" };
    Some((
        format!(
            "channel {} reaches {:.3} where the median channel reaches {:.3}, and {wide} share one scale; lifting \
             the node helps, or clipping harder may",
            outlier.channel, outlier.amax, outlier.median_amax
        ),
        &commands.bisect,
    ))
}

/// Channels that never carry anything.
fn dead_channels(layers: &[LayerError]) -> Option<Advice> {
    let dead: Vec<&LayerError> = layers.iter().filter(|layer| !layer.dead_channels.is_empty()).collect();
    let count: usize = dead.iter().map(|layer| layer.dead_channels.len()).sum();
    (count > 0).then(|| Advice {
        level: AdviceLevel::Info,
        text: format!(
            "{count} channels of {} operators were zero in every sample that was measured; those that stay zero on all \
             of the data can be pruned",
            dead.len()
        ),
        nodes: dead.iter().map(|layer| layer.node.clone()).collect(),
        command: None,
    })
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent > 0.0 && percent < 1.0 { format!("{percent:.2} %") } else { format!("{percent:.0} %") }
}

/// `a`, `a and b`, `a, b and c`.
fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::layerwise::{OutlierChannel, WorstChannel};

    fn commands() -> Commands {
        Commands {
            run: "calib run".to_owned(),
            bisect: "calib bisect".to_owned(),
            quantize: "calib quantize".to_owned(),
        }
    }

    fn activation() -> ActivationError {
        ActivationError {
            tensor: "x".to_owned(),
            producer: Some("Concat".to_owned()),
            noise: Some(1.0),
            saturated: 0.0,
            saturation_noise: 0.0,
            outlier: None,
            dead_channels: Vec::new(),
        }
    }

    fn layer(node: &str, weight_sqnr_db: f64, activation_sqnr_db: f64) -> LayerError {
        LayerError {
            node: node.to_owned(),
            op_type: "Conv".to_owned(),
            tensor: "y".to_owned(),
            layerwise_sqnr_db: None,
            weight_sqnr_db: Some(weight_sqnr_db),
            activation_sqnr_db: Some(activation_sqnr_db),
            relative_noise: None,
            worst_channel: None,
            dead_channels: Vec::new(),
            activations: vec![activation()],
        }
    }

    fn outputs(noise: &[(&str, f64)]) -> Vec<OutputNoise> {
        let output = |&(node, noise): &(&str, f64)| OutputNoise {
            node: node.to_owned(),
            relative_noise: Some(noise),
            sqnr_db: None,
        };
        noise.iter().map(output).collect()
    }

    #[test]
    fn the_worst_operators_are_named_with_their_shares() {
        let advice = about_layers(&[], &outputs(&[("a", 1.0), ("b", 6.0), ("c", 2.0), ("d", 1.0)]), &commands());
        assert_eq!(
            advice[0].text,
            "of the noise that the 4 measured operators send to the outputs when each is quantized alone, 90 % comes \
             from `b` (60 %), `c` (20 %) and `a` (10 %)"
        );
        assert_eq!((advice[0].level, advice.len()), (AdviceLevel::Warning, 1));
        assert!(about_layers(&[], &outputs(&[("a", 0.0)]), &commands()).is_empty());
    }

    #[test]
    fn what_the_head_costs_is_told_and_lifted_only_where_that_helps() {
        let nodes = vec!["a".to_owned(), "b".to_owned()];
        let effect = HeadEffect { nodes, sqnr_db: [1.84, 2.1, 17.0], recall: [0.476, 0.48, 0.9], samples: 16 };
        let advice = about_head(&effect, "fp32", &commands());
        assert_eq!(
            advice.text,
            "the 2 last convolutions and products of the head (`a` and others), quantized alone, leave the outputs at \
             17.0 dB (90 % of the boxes found); with them in fp32 the whole goes from 1.8 dB (48 %) to 2.1 dB (48 %), on 16 \
             samples: what costs accuracy lies before them, so lifting them does not help"
        );
        assert_eq!((advice.level, advice.command), (AdviceLevel::Info, None));
        let effect = HeadEffect { sqnr_db: [1.8, 9.0, 2.0], ..effect };
        let advice = about_head(&effect, "fp32", &commands());
        assert!(advice.text.ends_with("lift them in a plan") && advice.command.is_some(), "{advice:?}");
        let fewer = HeadEffect { sqnr_db: [38.5, 40.4, 41.0], recall: [0.98, 0.97, 0.99], ..effect };
        let advice = about_head(&fewer, "fp32", &commands());
        assert!(advice.text.ends_with("that finds no more boxes, so nothing is gained by lifting them"), "{advice:?}");
        assert_eq!((advice.level, advice.command), (AdviceLevel::Info, None));
    }

    #[test]
    fn the_method_and_the_lift_are_told_from_their_figures() {
        let way = |name: &str, sqnr_db| Way { name: name.to_owned(), sqnr_db };
        let ways = [way("auto", 21.04), way("mse", 22.5), way("entropy", 21.5)];
        let advice = about_method("mse", &ways, 80).unwrap();
        assert_eq!(
            advice.text,
            "of 3 ways to choose ranges, mse came nearest to the float model on 80 held-out samples: SQNR 22.5 dB, \
             against 21.5 dB of entropy, the next best"
        );
        let advice = about_method("entropy", &ways, 80).map(|advice| advice.text).unwrap_or_default();
        assert!(
            advice.contains("entropy was taken: SQNR 21.5") && advice.contains("the lead of mse, with 22.5"),
            "{advice}"
        );
        assert!(about_method("mse", &ways[1..2], 80).is_none() && about_method("minmax", &ways, 80).is_none());
        let nodes = told(&outputs(&[("a", 1.0), ("b", 6.0), ("c", 2.0), ("d", 3.0)]));
        assert_eq!(nodes, ["b", "d", "c"]);
        let effect = LiftEffect { nodes, sqnr_db: [19.14, 23.96], samples: 16 };
        let lost = LiftEffect { sqnr_db: [f64::NEG_INFINITY, f64::INFINITY], ..effect.clone() };
        let text = about_lift(&lost, "fp32", &commands()).text;
        assert!(text.contains("changes the SQNR of the outputs from NaN to infinite (16 samples)"), "{text}");
        let advice = about_lift(&effect, "fp32", &commands());
        assert!(
            advice
                .text
                .starts_with("lifting `b`, `d` and `c` to fp32 changes the SQNR of the outputs from 19.1 to 24.0 dB")
        );
        assert_eq!(advice.command.as_deref(), Some("calib bisect"));
    }

    #[test]
    fn each_cause_has_its_sentence_and_its_command() {
        let told = |layer: LayerError| {
            let advice = about_layers(&[layer], &outputs(&[("n", 1.0)]), &commands());
            advice.get(1).map(|advice| (advice.text.clone(), advice.command.clone().unwrap_or_default()))
        };
        // 10 dB apart: ten times the noise.
        let mut weights = layer("n", 20.0, 30.0);
        let (text, _) = told(weights.clone()).unwrap();
        assert_eq!(
            text,
            "the weights of `n` make 91 % of its error; lifting it helps, and no range of its input would"
        );
        weights.worst_channel = Some(WorstChannel { channel: 5, of: 8, noise_share: 0.97, sqnr_db: Some(0.0) });
        assert!(told(weights).unwrap().0.contains("output channel 5 of 8 alone carries 97 %"));
        let mut clipped = layer("n", 30.0, 20.0);
        (clipped.activations[0].saturated, clipped.activations[0].saturation_noise) = (0.002, 0.9);
        assert_eq!(
            told(clipped).unwrap(),
            (
                "`n` suffers from its input `x`: 0.20 % of its values are clipped, which makes 90 % of its noise; a \
                 wider range costs less"
                    .to_owned(),
                "calib run".to_owned()
            )
        );
        let mut outlier = layer("n", 30.0, 20.0);
        outlier.activations[0].outlier = Some(OutlierChannel { channel: 17, amax: 95.0, median_amax: 4.0 });
        let (text, command) = told(outlier.clone()).unwrap();
        assert!(text.contains("channel 17 reaches 95.000 where the median channel reaches 4.000"), "{text}");
        assert!(text.contains("the Concat before it") && command == "calib bisect", "{text}");
        outlier.activations[0].outlier = Some(OutlierChannel { channel: 17, amax: 9.0, median_amax: 4.0 });
        assert_eq!(told(outlier), None);
        let mut dead = layer("n", 30.0, 20.0);
        dead.dead_channels = vec![1, 4];
        assert!(told(dead).unwrap().0.starts_with("2 channels of 1 operators were zero"));
    }
}

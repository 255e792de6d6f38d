//! A made-up report for tests: every part is there, and the same bytes come out each time.

use std::collections::BTreeMap;

use base64::Engine;

use super::*;
use crate::{
    artifact::{ContentHash, Tool},
    backend::{
        TensorInfo,
        tensorrt::{EngineLayer, EngineTensor, LayerKind, NumberType},
    },
    bench::{Latency, Mode, SpeedUp, Throughput},
    calibrate::{DeployTo, Effort, Lifted, Method},
    compare::{Accuracy, Agreement, Flip, GateResult, Metric, OutputMetrics, Scored},
    tensor::ElementType,
};

/// How much of what grows.
pub(super) struct Size {
    pub layers: usize,
    pub flips: usize,
}

const CLASSES: [&str; 8] =
    ["barn owl", "bee-eater", "coral reef", "daisy", "espresso", "fire salamander", "gondola", "harp"];

/// A number in [0, 1) that depends on its arguments only.
fn random(salt: &str, index: usize) -> f64 {
    let hash = blake3::hash(format!("{salt} {index}").as_bytes());
    let word = u32::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], hash.as_bytes()[3]]);
    f64::from(word) / 2f64.powi(32)
}

fn hash(of: &str) -> ContentHash {
    ContentHash::of_bytes(of.as_bytes())
}

/// The report; figures are plausible, and not measured.
pub(super) fn report(size: &Size) -> Report {
    let tensor = |name: &str, shape: Vec<Option<usize>>| TensorInfo {
        name: name.into(),
        element_type: Some(ElementType::F32),
        shape,
    };
    let ids = |from: usize, to: usize| (from..to).map(|i| format!("{}/{i:04}.jpg", CLASSES[i % 8])).collect::<Vec<_>>();
    let flips = flips(size.flips);
    let thumbnails = thumbnails(&flips);
    let precisions = precisions(flips, size.layers);
    Report {
        graph: None,
        format_version: REPORT_FORMAT_VERSION,
        tool: Tool { name: "calib".into(), version: "0.1.0".into() },
        created: "2026-11-21T12:00:00Z".into(),
        command: ["calib", "run", "--model", "models/example net.onnx", "--data", "photos", "--gate", "top1=0.98"].map(str::to_owned).into(),
        config: "model = \"models/example net.onnx\"\ndata = \"photos\"\ncalib_samples = 512\nmethod = \"auto\"\n\n[gate]\ntop1 = 0.98\ntop5 = 0.9\nsqnr_db = 15.0\n".into(),
        environment: environment(),
        model: ModelInfo {
            path: "models/example net.onnx".into(),
            hash: hash("model"),
            bytes: 18_601_312,
            inputs: vec![tensor("image", vec![None, Some(3), Some(224), Some(224)])],
            outputs: vec![tensor("logits", vec![None, Some(1000)])],
            nodes: 131,
            parameters: 4_649_928,
            weights: [("float32".to_owned(), 11_000_000)].into(),
            arithmetic: vec!["float32".to_owned()],
            opset: 17,
            producer: Some("made by hand".into()),
        },
        dataset: DatasetInfo {
            evaluation_hash: Some(ContentHash::of_bytes(b"pictures")),
            truth_hash: None,
            path: "photos".into(),
            hash: hash("data"),
            calibration: ids(0, 512),
            evaluation: ids(512, 1512),
            overlapping: 0,
            skipped: vec![SkippedSample { sample: "harp/broken.jpg".into(), reason: "the JPEG ends after 812 bytes".into() }],
            labels: Some(Labels {
                source: "folder names".into(),
                labelled: 1000,
                names: CLASSES.iter().enumerate().map(|(i, &name)| (i as u32, name.to_owned())).collect(),
            }),
            preprocess: Some("resize 256 bicubic, crop 224, ÷ 255, ImageNet mean and std, NCHW, RGB".into()),
            random_data: false,
        },
        calibration: Some(calibration()),
        recovery: Some(recovery()),
        recovery_fp8: None,
        verdict: Verdict::new(gates(), &precisions),
        thumbnails,
        precisions,
        layers: layers(size.layers),
        layers_backend: (size.layers > 0).then(|| "onnxruntime-cpu".into()),
        layers_samples: (size.layers > 0).then_some(16),
        advice: advice(),
        notes: vec!["Every figure and name here is made up.".into()],
        timings: vec![StageTime {
            stage: "comparing".into(),
            seconds: 2.5,
            cpu_seconds: 4.5,
            sessions: 0,
            passes: 1,
            samples_read: 1000,
        }],
    }
}

fn environment() -> Environment {
    let libraries = [("onnxruntime", "1.31.1"), ("tensorrt", "11.4.0"), ("cuda", "13.0")];
    Environment {
        os: "Linux x86_64".into(),
        cpu_model: "Example CPU".into(),
        cores: 16,
        cpu_mhz: Some(3400),
        cpu_temperature_c: None,
        memory_bytes: 64 << 30,
        libraries: libraries.map(|(name, version)| (name.to_owned(), version.to_owned())).into(),
        gpu: Some(Gpu {
            name: "Example GPU".into(),
            compute_capability: "8.9".into(),
            memory_bytes: 24 << 30,
            driver: "590.10".into(),
            clock_mhz: Some(2520),
            temperature_c: Some(58),
        }),
    }
}

fn agreement(top1: f64, top5_overlap: f64) -> Agreement {
    Agreement {
        top1,
        top1_interval: [top1 - 0.011, (top1 + 0.007).min(1.0)],
        top5_overlap,
        top5_set: 0.71,
        ref_top1_in_top5: 0.999,
        samples: 1000,
    }
}

fn output(sqnr_db: f64) -> OutputMetrics {
    let rel_l2 = 10f64.powf(-sqnr_db / 20.0);
    OutputMetrics {
        name: "logits".into(),
        max_abs: rel_l2 * 9.0,
        mean_abs: rel_l2 * 1.4,
        rel_l2,
        cosine: 1.0 - rel_l2 * rel_l2 / 2.0,
        sqnr_db: Some(sqnr_db),
        integers: false,
        empty: false,
        parts: Vec::new(),
    }
}

fn recovery() -> Recovery {
    let row = |name: &str, kept, before_db, after_db, what: &str| RecoveryRow {
        name: name.into(),
        kept,
        before_db: Some(before_db),
        after_db: Some(after_db),
        gain_interval_db: Some([after_db - before_db - 0.3, after_db - before_db + 0.3]),
        seconds: 1.25,
        what: what.into(),
    };
    Recovery {
        effort: Effort::Default,
        deploy_to: DeployTo::Rtx,
        steps: vec![
            row("biases", true, 15.9, 18.75, "12 biases"),
            row("shift", true, 18.75, 20.0, "2 activations shifted, 12 biases"),
            row(
                "rounding",
                false,
                20.0,
                19.9,
                "3 weights rounded anew; not kept, for held-out samples do not gain by it",
            ),
        ],
        shifted: vec!["conv_1".into()],
        equalized: Vec::new(),
        rounded: Vec::new(),
        lifted: vec![Lifted { node: "conv_2".into(), noise: 0.25, macs: 0.004 }],
    }
}

fn calibration() -> Calibration {
    let tried = [
        (Method::MinMax, 0.971, 0.93, 18.7),
        (Method::Percentile, 0.979, 0.937, 18.9),
        (Method::Entropy, 0.965, 0.898, 14.5),
        (Method::Mse, 0.974, 0.936, 19.0),
    ];
    let candidate = |(method, top1, overlap, sqnr_db): (Method, f64, f64, f64)| CandidateResult {
        method: method.name().into(),
        bias_correction: false,
        final_thresholds: false,
        chosen: method == Method::Percentile,
        samples: 100,
        agreement: Some(Agreement { samples: 100, ..agreement(top1, overlap) }),
        outputs: vec![output(sqnr_db)],
        sqnr_db_interval: Some([sqnr_db - 0.6, sqnr_db + 0.6]),
    };
    Calibration {
        method: "percentile".into(),
        percentile: 99.99,
        samples: 512,
        random_data: false,
        seconds: 8.4,
        images_per_second: 61.0,
        peak_rss_bytes: 412 << 20,
        candidates: tried.map(candidate).into(),
    }
}

fn gates() -> Vec<Gate> {
    let gate = |precision: &str, metric: Metric, threshold, value: f64| Gate {
        precision: precision.into(),
        backend: "tensorrt".into(),
        result: GateResult {
            metric,
            part: None,
            direction: metric.direction(),
            confidence: None,
            interval: metric.is_counted().then(|| [value - 0.014, (value + 0.011).min(1.0)]),
            bound: None,
            threshold,
            value: Some(value),
            passed: value >= threshold,
            note: None,
        },
    };
    vec![
        gate("fp16", Metric::Top1, 0.98, 0.999),
        gate("int8", Metric::Top1, 0.98, 0.976),
        gate("int8", Metric::Top5, 0.9, 0.934),
        gate("int8", Metric::SqnrDb, 15.0, 18.4),
    ]
}

fn precisions(flips: Vec<Flip>, layers: usize) -> Vec<Precision> {
    let accuracy = |top1: f64, p| {
        Some(Accuracy {
            top1,
            top1_interval: [top1 - 0.027, top1 + 0.026],
            top5: top1 + 0.17,
            top5_interval: [top1 + 0.155, top1 + 0.183],
            samples: 1000,
            mcnemar_p: p,
        })
    };
    let artifact = |path: &str, bytes| Some(ArtifactFile { path: path.into(), hash: hash(path), bytes });
    let latency = |median: f64, timing, provider: &str| {
        Some(LatencyMs {
            figures: Latency {
                median,
                median_interval: Some([median * 0.995, median * 1.004]),
                mean: median * 1.02,
                std: median * 0.05,
                jitter: median * 0.6,
                p90: median * 1.06,
                p95: median * 1.1,
                p99: median * 1.3,
                p99_uncertainty: median * 0.08,
                count: 2000,
                batch: 1,
            },
            timing,
            mode: Mode { provider: provider.into(), threads: 1, transfers: false, cuda_graph: provider == "tensorrt" },
            warnings: vec![],
        })
    };
    let fps = |median: f64| {
        Some(Throughput {
            median: 1000.0 / median,
            mean: 980.0 / median,
            uncertainty: 4.0 / median,
            jitter: 600.0 / median,
        })
    };
    let speedup = |ratio: f64| {
        Some(Speedup {
            against: "fp32 tensorrt".into(),
            figures: SpeedUp { ratio, interval: [ratio * 0.97, ratio * 1.02] },
        })
    };
    let few = flips.iter().take(2).cloned().collect::<Vec<_>>();
    vec![
        Precision { reference: true, accuracy: accuracy(0.752, None), latency_ms: latency(9.2, Timing::Measured, "CPU"), throughput_fps: fps(9.2), ..Precision::new("fp32", "onnxruntime-cpu") },
        Precision { agreement: Some(agreement(1.0, 1.0)), accuracy: accuracy(0.752, Some(1.0)), outputs: vec![output(104.2)], artifact: artifact("engines/fp32.plan", 19_204_000), latency_ms: latency(1.31, Timing::Measured, "tensorrt"), throughput_fps: fps(1.31), ..Precision::new("fp32", "tensorrt") },
        Precision { agreement: Some(agreement(0.999, 0.995)), accuracy: accuracy(0.752, Some(1.0)), outputs: vec![output(58.1)], artifact: artifact("engines/fp16.plan", 9_820_000), quantized_nodes: Some(131), latency_ms: latency(0.74, Timing::Measured, "tensorrt"), throughput_fps: fps(0.74), speedup: speedup(1.77), engine: engine(layers, false), ..Precision::new("fp16", "tensorrt") },
        Precision { agreement: Some(agreement(0.979, 0.937)), accuracy: accuracy(0.744, Some(0.24)), outputs: vec![output(18.9)], artifact: artifact("model.int8.onnx", 5_012_000), quantized_nodes: Some(98), latency_ms: latency(14.0, Timing::Emulated, "CPU"), flips: few, flips_total: 21, ..Precision::new("int8", "onnxruntime-cpu") },
        Precision { agreement: Some(agreement(0.976, 0.934)), accuracy: accuracy(0.743, Some(0.19)), outputs: vec![output(18.4)], artifact: artifact("engines/int8.plan", 5_480_000), quantized_nodes: Some(98), latency_ms: latency(0.46, Timing::Measured, "tensorrt"), throughput_fps: fps(0.46), speedup: speedup(2.85), flips_total: flips.len().max(24), flips, engine: engine(layers, true), ..Precision::new("int8", "tensorrt") },
        Precision { error: Some("FP8 needs compute capability 8.9 with TensorRT 11 on this platform; the builder found no kernel for `/features/conv/Conv`".into()), ..Precision::new("fp8", "tensorrt") },
    ]
}

/// An engine with a layer for each of `count` nodes; every fourth stays in FP16 where the others are quantized.
fn engine(count: usize, quantized: bool) -> Option<EngineInside> {
    let layer = |name: &str, layer_type: &str, kind, [reads, writes]: [NumberType; 2], node: String| {
        let tensor = |number_type| EngineTensor {
            name: format!("{name} values"),
            number_type,
            shape: vec![-1, 64, 28, 28],
            format: "Channel major format".into(),
        };
        EngineLayer {
            name: name.into(),
            layer_type: layer_type.into(),
            kind,
            precision: if kind == LayerKind::Compute { reads } else { NumberType::Unknown },
            nodes: vec![node],
            inputs: vec![tensor(reads)],
            outputs: vec![tensor(writes)],
            tactic: String::new(),
        }
    };
    let (half, int8) = (NumberType::Fp16, if quantized { NumberType::Int8 } else { NumberType::Fp16 });
    let mut layers = Vec::new();
    if quantized {
        let node = "image_QuantizeLinear".into();
        layers.push(layer("__myl_MulMinMaxRounCast_0", "kgen", LayerKind::QuantizeDequantize, [half, int8], node));
    }
    layers.push(layer("__myl_Move_1", "kgen", LayerKind::Reformat, [int8, int8], "image".into()));
    layers.extend((0..count).map(|i| {
        let reads = if i % 4 == 2 { half } else { int8 };
        let node = format!("/blocks.{}/Conv", i / 4);
        layer(&format!("conv {i}"), "correlation", LayerKind::Compute, [reads, half], node)
    }));
    (count > 0).then(|| EngineInside::new(layers))
}

fn flips(count: usize) -> Vec<Flip> {
    let scored = |class: usize, score: f64| Scored {
        class: class as u32,
        name: Some(CLASSES[class].to_owned()),
        score: score as f32,
    };
    let flip = |i: usize| {
        let five = |salt: &str, first: usize, second: usize| {
            let rest = (0..8).filter(move |&c| c != first && c != second).take(3);
            let top = 8.0 + random(salt, i);
            [first, second]
                .into_iter()
                .chain(rest)
                .enumerate()
                .map(|(rank, class)| scored(class, top - rank as f64 * 0.7))
                .collect()
        };
        let (a, b) = (i % 8, (i + 1 + i / 8) % 8);
        let (a, b) = if a == b { (a, (b + 1) % 8) } else { (a, b) };
        let label = [a, b, (a + b + 1) % 8][i * 7 % 5 % 3];
        Flip {
            sample: format!("{}/{:04}.jpg", CLASSES[label], 512 + i * 17),
            label: Some(label as u32),
            reference: five("reference", a, b),
            target: five("target", b, a),
        }
    };
    (0..count).map(flip).collect()
}

/// Small pictures that nobody takes for photographs.
fn thumbnails(flips: &[Flip]) -> BTreeMap<String, String> {
    let picture = |(i, flip): (usize, &Flip)| {
        let (hue, wave) = (random("hue", i), 3.0 + 9.0 * random("wave", i));
        let image = image::RgbImage::from_fn(96, 96, |x, y| {
            let (x, y) = (f64::from(x) / 96.0, f64::from(y) / 96.0);
            let light = 0.5 + 0.5 * ((x * wave).sin() * (y * wave + hue * 6.0).cos());
            image::Rgb([
                (60.0 + 150.0 * light * hue) as u8,
                (70.0 + 120.0 * light) as u8,
                (90.0 + 140.0 * (1.0 - hue) * x) as u8,
            ])
        });
        let mut jpeg = std::io::Cursor::new(Vec::new());
        image.write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
        let data = base64::engine::general_purpose::STANDARD.encode(jpeg.into_inner());
        (flip.sample.clone(), format!("data:image/jpeg;base64,{data}"))
    };
    flips.iter().enumerate().map(picture).collect()
}

fn layers(count: usize) -> Vec<Layer> {
    let layer = |i: usize| {
        let (op_type, part) =
            [("Conv", "expand"), ("Conv", "depthwise"), ("Add", "shortcut"), ("Conv", "project")][i % 4];
        let weak = random("weak", i) < 0.06;
        let amax = (2.0 + 6.0 * random("amax", i)) as f32;
        let limit = amax * 1.6;
        let spread = if weak { 0.05 } else { 0.24 };
        let share = |bin: usize| (-(bin as f64 / 64.0 / spread).powi(2)).exp();
        Layer {
            times: Vec::new(),
            node: format!("/blocks.{}/{part}/{op_type}", i / 4),
            operators: Vec::new(),
            op_type: op_type.into(),
            tensor: format!("/blocks.{}/{part}/{op_type}_output_0", i / 4),
            precision: if op_type == "Add" { "fp16" } else { "int8" }.into(),
            graphwise_sqnr_db: Some(
                (42.0
                    - 22.0 * (i as f64 / count as f64).sqrt()
                    - 5.0 * random("graph", i)
                    - if weak { 6.0 } else { 0.0 })
                .max(3.0),
            ),
            layerwise_sqnr_db: (op_type == "Conv")
                .then(|| 46.0 - 12.0 * random("layer", i) - if weak { 20.0 } else { 0.0 }),
            cosine: Some(1.0 - 0.004 * random("cosine", i)),
            weight_sqnr_db: (op_type == "Conv").then(|| 38.0 + 6.0 * random("weight", i)),
            min: Some(if i.is_multiple_of(3) { 0.0 } else { -limit }),
            max: Some(limit),
            amax: Some(amax),
            offset: None,
            scale: Some(amax / 127.0),
            method: Some(Method::Percentile),
            candidates: [
                (Method::MinMax, limit),
                (Method::Percentile, amax),
                (Method::Entropy, amax * 0.62),
                (Method::Mse, amax * 0.9),
            ]
            .into(),
            clipped: Some(if weak { 0.0021 } else { 0.0001 * random("clipped", i) }),
            histogram: Some(Histogram {
                limit,
                counts: (0..64).map(|bin| (4e6 * share(bin) + 40.0 * random("tail", i * 64 + bin)) as u64).collect(),
            }),
        }
    };
    (0..count).map(layer).collect()
}

fn advice() -> Vec<Advice> {
    vec![
        Advice { level: AdviceLevel::Problem, text: "Two depthwise convolutions lose most of the agreement: their channels' ranges differ by more than 100 times. Keeping them in FP16 is enough to pass the gate.".into(), nodes: vec!["/blocks.4/depthwise/Conv".into(), "/blocks.11/depthwise/Conv".into()], command: Some("calib run --config run.toml --nodes-to-exclude '/blocks\\.(4|11)/depthwise/Conv'".into()) },
        Advice { level: AdviceLevel::Warning, text: "1 sample could not be read.".into(), nodes: vec![], command: None },
        Advice { level: AdviceLevel::Info, text: "Min-max and percentile differ by less than the uncertainty; more held-out samples would tell them apart.".into(), nodes: vec![], command: None },
    ]
}

//! Every file format: valid examples, how to damage them, and what reads them.

use std::{
    collections::BTreeMap,
    fs,
    io::{Cursor, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use trtcalib::{
    artifact::{ContentHash, Tool},
    backend::{
        TensorInfo,
        tensorrt::{EngineLayers, EngineOptions, EngineSidecar, Flavour, SIDECAR_FORMAT_VERSION},
    },
    bisect::trials::TrialLog,
    calibrate::{
        CalibrationTable, Choice, Histograms, Provenance, Shards, cache::CalibrationCache, histogram::Histogram, tables,
    },
    compare::SavedOutputs,
    config::RunConfig,
    dataset::{DataOptions, InputSpec, Preprocess, decode, load_classes, load_preprocessor, open},
    npz::{read_npy, read_npz, write_npz},
    onnx::{Model, Severity, diagnose, graph::GraphView},
    quantize::{Precision, PrecisionPlan, QuantizeOptions, SchemeOptions, place, quantize, validate},
    report::{Report, html, junit, layers_csv, summary},
    session::checkpoint::Checkpoints,
    stats::SplitMix64,
    tensor::{ElementType, Tensor, TensorMap},
};

use super::{
    models,
    mutate::{damage, damage_protobuf, damage_text},
    root,
};

type Damage = fn(&[u8], &mut SplitMix64) -> Vec<u8>;
type Use = fn(&Path) -> Result<(), String>;

/// A file format.
pub struct Format {
    pub name: &'static str,
    /// Name of a damaged file; readers go by it.
    pub file: &'static str,
    /// Valid contents.
    pub valid: Vec<Vec<u8>>,
    pub damage: Damage,
    /// Reads a file and does with it what commands do.
    pub read: Use,
}

/// All formats. `folder` is for making examples.
pub fn all(folder: &Path) -> Vec<Format> {
    let example = |file: &str| fs::read(root().join(file)).unwrap();
    let format = |name, file, valid: Vec<Vec<u8>>, damage, read| Format { name, file, valid, damage, read };
    let made = |name: &str, make: &dyn Fn(&Path)| {
        let path = folder.join(name);
        make(&path);
        fs::read(path).unwrap()
    };
    let table = tables(&histograms(), 99.9, &[Choice::Auto]).unwrap().remove(0);
    let array = Tensor::from_f32(vec![2, 3, 4, 4], (0..96).map(|i| i as f32).collect()).unwrap();
    let arrays = TensorMap::from([("input".to_owned(), array)]);
    let npz = made("x.npz", &|path| write_npz(path, &arrays).unwrap());
    let images = |endings: &[&str]| {
        let entries = fs::read_dir(root().join("tests/fixtures/images")).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = entries
            .filter(|path| path.extension().is_some_and(|ending| endings.iter().any(|&e| ending == e)))
            .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with("bad"))
            .collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>()
    };
    let picture = root().join("calib_data/images/0000.png").display().to_string();
    let list = format!("{picture} 1\n{} 0\n", picture.replace("0000", "0001")).into_bytes();
    let preprocess = br#"{"image_mean":[0.5,0.5,0.5],"image_std":[0.5,0.5,0.5],"size":{"height":4,"width":4},"crop_size":4,"resample":3,"do_rescale":true,"rescale_factor":0.00392,"do_normalize":true}"#;
    vec![
        format("model", "m.onnx", vec![models::small(), models::small(), example("calib_data/demo.onnx")], model_damage, model),
        format("npz", "x.npz", vec![npz.clone()], npz_damage, npz_use),
        format("npy", "x.npy", vec![npy_of(&npz)], damage, |path| read_npy(path).map(drop).map_err(text)),
        format("image", "x.img", [images(&["png", "jpg", "webp", "bmp"]), vec![with_profile(&images(&["png"])[0])]].concat(), image_damage, |path| {
            decode(&fs::read(path).unwrap()).map(drop)
        }),
        format("table", "t.json", vec![made("t.json", &|path| table.save(path).unwrap())], damage_text, table_use),
        format(
            "calibration.cache",
            "c.cache",
            vec![made("c.cache", &|path| CalibrationCache::from_table(&table).save(path).unwrap())],
            damage_text,
            |path| {
                let cache = CalibrationCache::load(path).map_err(text)?;
                drop(cache.to_table(ContentHash::of_bytes(b"m")));
                Ok(())
            },
        ),
        format(
            "histograms",
            "h.calib",
            vec![histograms().to_bytes().unwrap()],
            hashed_damage,
            |path| {
                let mut histograms = Histograms::load(path).map_err(text)?;
                let other = histograms.clone();
                drop(histograms.merge(other));
                tables(&histograms, 99.9, &[Choice::Auto]).map(drop).map_err(text)
            },
        ),
        format(
            "plan",
            "p.json",
            vec![br#"{"format_version":1,"default":"int8","assignments":[{"node":"conv","precision":"fp16"},{"pattern":"a(b|c)*d.*","precision":"fp32"}]}"#.to_vec()],
            damage_text,
            |path| PrecisionPlan::read(path).map_err(text)?.compile().map(drop).map_err(text),
        ),
        format("report", "r.json", vec![example("reports/example/report.json")], damage_text, report),
        format("sidecar", "e.plan.json", vec![sidecar(folder)], damage_text, |path| {
            EngineSidecar::load(&path.with_extension("")).map(drop).map_err(text)
        }),
        format("configuration", "run.toml", vec![example("configs/demo.toml"), full_config()], damage_text, |path| {
            RunConfig::load(path).map_err(text)?.validate().map_err(text)
        }),
        format("preprocessor", "preprocessor_config.json", vec![preprocess.to_vec()], damage_text, |path| {
            let preprocess = load_preprocessor(path, None).map_err(text)?;
            preprocess.check()?;
            samples(&root().join("calib_data/images"), None, Some(&preprocess))
        }),
        format("inputs JSON", "inputs.json", vec![polygraphy(&npy_of(&npz))], damage_text, |path| samples(path, None, None)),
        format("list", "list.txt", vec![list], damage_text, |path| samples(path, None, Some(&exact()))),
        format("outputs JSON", "o.json", vec![br#"[{"name": "y", "dimensions": "1x2", "values": [0.5, -1e3]}]"#.to_vec()], damage_text, |path| {
            SavedOutputs::open(path).map_err(text)?.batch(&[0], &["0"]).map(drop).map_err(text)
        }),
        format("labels", "labels.csv", vec![example("calib_data/labels.csv"), b"\xef\xbb\xbffile;label;name\r\n0000.png;1;\"a; \"\"b\"\"\"\r\n0001.png;0;c\r\n".to_vec()], damage_text, |path| {
            samples(&root().join("calib_data/images"), Some(path), Some(&exact()))
        }),
        format("COCO's JSON", "instances.json", vec![coco()], damage_text, |path| {
            samples(&root().join("calib_data/images"), Some(path), Some(&exact()))
        }),
        format("YOLO labels", "0000.txt", vec![YOLO.as_bytes().to_vec()], damage_text, |path| {
            let labels = detection(path, "labels/0000.txt");
            samples(&labels.join("images"), Some(&labels.join("labels")), Some(&exact()))
        }),
        format("data.yaml", "data.yaml", vec![YAML.as_bytes().to_vec()], damage_text, |path| {
            let data = detection(path, "data.yaml");
            fs::write(data.join("labels/0000.txt"), YOLO).unwrap();
            samples(&data.join("data.yaml"), None, Some(&exact()))
        }),
        format("classes", "classes.txt", vec![example("calib_data/classes.txt")], damage_text, |path| {
            load_classes(path).map(drop).map_err(text)
        }),
        format("trials", "trials.json", vec![trials()], damage_text, |path| {
            TrialLog::resume(path, ContentHash::of_bytes(b"context")).map(drop).map_err(text)
        }),
        format("checkpoint", "stage.checkpoint", vec![checkpoint(folder)], hashed_damage, |path| {
            let context = ContentHash::of_bytes(b"context");
            fs::write(path.with_file_name("context"), context.as_str()).unwrap();
            let (checkpoints, _) =
                Checkpoints::open(path.parent().unwrap(), context, Duration::ZERO).map_err(text)?;
            checkpoints.load::<serde_json::Value>("stage").map(drop).map_err(text)
        }),
    ]
}

/// A box and a polygon.
const YOLO: &str = "1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.4 0.1 0.4 0.35 0.1 0.35\n";
const YAML: &str =
    "path: .\ntrain: images\nval:\n  - list.txt\n  - images\nnc: 2\nnames:\n  0: 'circle'\n  1: \"square\"\n";

/// Boxes, a crowd, categories with gaps and a picture without objects.
fn coco() -> Vec<u8> {
    let annotation = |id: u64, category: u64, crowd: u64| {
        serde_json::json!({ "id": id, "image_id": 139, "category_id": category, "bbox": [1.5, 2.0, 8.25, 6.0],
            "area": 40.5, "iscrowd": crowd, "segmentation": [[1.5, 2.0, 9.75, 2.0, 9.75, 8.0]] })
    };
    let images = [(139, "0000.png"), (285, "0001.png")];
    let images = images.map(|(id, name)| serde_json::json!({ "id": id, "file_name": name, "width": 32, "height": 32 }));
    serde_json::to_vec_pretty(&serde_json::json!({
        "info": { "year": 2017 }, "images": images, "annotations": [annotation(1, 1, 0), annotation(2, 90, 1)],
        "categories": [{ "id": 1, "name": "circle" }, { "id": 90, "name": "square" }]
    }))
    .unwrap()
}

/// A folder beside `path` with two pictures and a copy of `path` as `name`.
fn detection(path: &Path, name: &str) -> PathBuf {
    let folder = path.with_extension("set");
    for part in ["images", "labels"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    for picture in ["0000.png", "0001.png"] {
        let to = folder.join("images").join(picture);
        if !to.exists() {
            fs::copy(root().join("calib_data/images").join(picture), to).unwrap();
        }
    }
    fs::write(folder.join("list.txt"), "./images/0001.png\n").unwrap();
    fs::copy(path, folder.join(name)).unwrap();
    folder
}

/// A PNG file with a packed profile behind its header.
fn with_profile(png: &[u8]) -> Vec<u8> {
    const HEADER: usize = 33;
    let content = [b"icc\0\0".as_slice(), &[0x78, 0x9c, 1, 4, 0, 0xfb, 0xff, b'p', b'r', b'o', b'f']].concat();
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&png[..HEADER], &length, b"iCCP", &content, &[0; 4], &png[HEADER..]].concat()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn histograms() -> Histograms {
    let hash = ContentHash::of_bytes(b"m");
    let provenance =
        Provenance { model_hash: hash.clone(), data_hash: hash, random_data: false, shards: Shards::whole() };
    let mut histograms = Histograms::new(provenance);
    for (name, scale) in [("a", 1.0), ("b", 0.01)] {
        let mut histogram = Histogram::default();
        let values: Vec<f32> = (0..2000).map(|i| scale * ((i * 37 % 101) as f32 - 50.0)).collect();
        histogram.observe(Tensor::from_f32(vec![2000], values).unwrap().view()).unwrap();
        histograms.fit.insert(name.to_owned(), histogram.clone());
        histograms.held_out.insert(name.to_owned(), histogram);
    }
    (histograms.fit_samples, histograms.held_out_samples) = (4, 4);
    histograms
}

pub fn sidecar(folder: &Path) -> Vec<u8> {
    let info = |name: &str| TensorInfo {
        name: name.to_owned(),
        element_type: Some(ElementType::F32),
        shape: vec![None, Some(3)],
    };
    let sidecar = EngineSidecar {
        format_version: SIDECAR_FORMAT_VERSION,
        tool: Tool::current(),
        engine_hash: ContentHash::of_bytes(b"e"),
        flavour: Flavour::TensorRtRtx,
        tensorrt_version: "1.2.3".to_owned(),
        model: "m.onnx".into(),
        model_hash: ContentHash::of_bytes(b"m"),
        reference: None,
        data: None,
        labels: None,
        precision: Some("int8".to_owned()),
        random_data: true,
        inputs: vec![info("x")],
        outputs: vec![info("y")],
        options: EngineOptions::default(),
        build_seconds: 1.5,
        warnings: vec!["a warning".to_owned()],
        layers: EngineLayers::parse(r#"{"Layers": [{"Name": "conv", "LayerType": "correlation"}]}"#, &BTreeMap::new())
            .unwrap()
            .layers,
    };
    let engine = folder.join("e.plan");
    sidecar.save(&engine).unwrap();
    fs::read(folder.join("e.plan.json")).unwrap()
}

fn full_config() -> Vec<u8> {
    RunConfig { shape: BTreeMap::from([("x".to_owned(), vec![1, 3, 4, 4])]), ..RunConfig::default() }
        .to_toml()
        .unwrap()
        .into_bytes()
}

fn trials() -> Vec<u8> {
    let mut log = TrialLog::new(ContentHash::of_bytes(b"context"));
    let trial = serde_json::json!({"plan": "00", "phase": "prefix", "lifted": ["a", "b"], "cost": 2.0,
        "verdict": {"passed": true, "score": 0.5, "metrics": {"top1": 0.5}}});
    log.trials.push(serde_json::from_value(trial).unwrap());
    serde_json::to_vec(&log).unwrap()
}

fn checkpoint(folder: &Path) -> Vec<u8> {
    let folder = folder.join("checkpoints");
    let (checkpoints, _) = Checkpoints::open(&folder, ContentHash::of_bytes(b"context"), Duration::ZERO).unwrap();
    checkpoints.save("stage", &serde_json::json!({"done": 7, "skipped": ["a"]}), b"of its own").unwrap();
    fs::read(folder.join("stage.checkpoint")).unwrap()
}

fn polygraphy(npy: &[u8]) -> Vec<u8> {
    use base64::Engine;
    let array = base64::engine::general_purpose::STANDARD.encode(npy);
    serde_json::to_vec(&serde_json::json!([{"input": {"array": array, "polygraphy_class": "ndarray"}}])).unwrap()
}

/// A model that takes pictures of 4×4.
pub fn specs() -> Vec<InputSpec> {
    let shape = vec![None, Some(3), Some(4), Some(4)];
    vec![InputSpec { name: "input".to_owned(), element_type: Some(ElementType::F32), shape }]
}

pub fn exact() -> Preprocess {
    Preprocess::preset("unit", 4, 4).unwrap()
}

/// Opens data and reads its first samples.
fn samples(path: &Path, labels: Option<&Path>, preprocess: Option<&Preprocess>) -> Result<(), String> {
    let (classes, inputs) = (BTreeMap::new(), specs());
    let collection = open(&DataOptions {
        path,
        labels,
        classes: &classes,
        category_ids: &[],
        key_points: None,
        inputs: &inputs,
        preprocess,
    })
    .map_err(text)?;
    for index in 0..collection.dataset.len().min(2) {
        let _ = collection.dataset.label(index);
        collection.dataset.read(index).map_err(text)?;
    }
    Ok(())
}

fn model(path: &Path) -> Result<(), String> {
    let model = Model::load(path).map_err(text)?;
    let findings = diagnose(&model);
    drop(validate(&model));
    model.to_bytes().map_err(text)?;
    if let Some(finding) = findings.iter().find(|finding| finding.severity == Severity::Error) {
        return Err(finding.message.clone());
    }
    GraphView::new(model.graph()).map_err(text)?;
    place(&model, &BTreeMap::new(), &SchemeOptions::default()).map_err(text)?;
    let half = SchemeOptions { precision: Precision::Fp16, ..SchemeOptions::default() };
    let options = QuantizeOptions { scheme: half, ..QuantizeOptions::default() };
    quantize(&model, &BTreeMap::new(), None, &options).map(drop).map_err(text)
}

fn npz_use(path: &Path) -> Result<(), String> {
    let read = read_npz(path).map(drop).map_err(text);
    let saved = SavedOutputs::open(path).map_err(text)?;
    saved.batch(&[0], &["0"]).map(drop).map_err(text)?;
    read.and_then(|()| samples(path, None, None))
}

fn table_use(path: &Path) -> Result<(), String> {
    let table = CalibrationTable::load(path).map_err(text)?;
    drop(CalibrationCache::from_table(&table));
    let model = Model::from_bytes(models::small()).map_err(text)?;
    quantize(&model, &BTreeMap::new(), Some(&table), &QuantizeOptions::default()).map(drop).map_err(text)
}

fn report(path: &Path) -> Result<(), String> {
    let report = Report::read(path).map_err(text)?;
    html(&report).map_err(text)?;
    drop(summary(&report));
    junit(&report, std::io::sink()).map_err(text)?;
    layers_csv(&report, std::io::sink()).map_err(text)
}

fn model_damage(bytes: &[u8], random: &mut SplitMix64) -> Vec<u8> {
    let structured = if random.below(4) > 0 { damage_protobuf(bytes, random) } else { None };
    structured.unwrap_or_else(|| damage(bytes, random))
}

/// Damage within, under a hash that fits, so that it gets beyond the first check.
fn hashed_damage(bytes: &[u8], random: &mut SplitMix64) -> Vec<u8> {
    if random.below(4) == 0 {
        return damage(bytes, random);
    }
    let mut content = damage(&bytes[..bytes.len() - 32], random);
    let hash = ContentHash::of_bytes(&content);
    let digits = hash.as_str().as_bytes().chunks(2);
    content.extend(digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()));
    content
}

fn npy_of(npz: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipArchive::new(Cursor::new(npz)).unwrap();
    let mut bytes = Vec::new();
    archive.by_index(0).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Damage of the archive, or of an array in it under a fitting checksum.
fn npz_damage(bytes: &[u8], random: &mut SplitMix64) -> Vec<u8> {
    if random.below(3) == 0 {
        return damage(bytes, random);
    }
    let array = damage(&npy_of(bytes), random);
    let method = if random.below(2) == 0 { zip::CompressionMethod::Stored } else { zip::CompressionMethod::Deflated };
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for name in &["input.npy", "../input.npy"][..=random.below(2)] {
        archive.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        archive.write_all(&array).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// Damage of a picture; the checksums of PNG are made to fit now and then.
fn image_damage(bytes: &[u8], random: &mut SplitMix64) -> Vec<u8> {
    const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
    let mut damaged = damage(bytes, random);
    if !damaged.starts_with(SIGNATURE) || random.below(3) == 0 {
        return damaged;
    }
    let mut at = SIGNATURE.len();
    while let Some(head) = damaged.get(at..at + 4) {
        let length = u32::from_be_bytes(head.try_into().unwrap()) as usize;
        let end = at + 8 + length;
        let Some(chunk) = damaged.get(at + 4..end) else { break };
        let checksum = crc32(chunk).to_be_bytes();
        let Some(place) = damaged.get_mut(end..end + 4) else { break };
        place.copy_from_slice(&checksum);
        at = end + 4;
    }
    damaged
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

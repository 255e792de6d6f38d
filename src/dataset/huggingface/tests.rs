//! Files as they are published, with the pixels' arithmetic worked out by hand.

use serde_json::json;

use super::*;

#[expect(clippy::needless_pass_by_value, reason = "callers write literals")]
fn read(json: Value) -> Preprocess {
    parse(&json, None).unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "callers write literals")]
fn refusal(json: Value) -> String {
    parse(&json, None).unwrap_err()
}

#[test]
fn vit_clip_and_convnext() {
    let vit = read(json!({"do_resize": true, "size": {"height": 224, "width": 224}, "resample": 2,
        "do_rescale": true, "rescale_factor": 0.003_921_568_627_450_98, "do_normalize": true,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}));
    assert_eq!((vit.resize, vit.crop), (Some(Extent::Exact([224, 224])), None));
    assert_eq!((vit.mean, vit.crop_rounding), ([0.5; 3], CropRounding::Floor));
    let clip = read(json!({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224},
        "do_center_crop": true, "resample": 3}));
    assert_eq!((clip.resize, clip.crop), (Some(Extent::One(224)), Some(Extent::Exact([224, 224]))));
    assert_eq!((clip.interpolation, clip.mean), (Interpolation::Bicubic, [0.0; 3]));
    let convnext = |size: usize| {
        read(json!({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": size},
            "crop_pct": 0.875, "resample": 3}))
    };
    let (small, large) = (convnext(224), convnext(384));
    assert_eq!((small.resize, small.crop), (Some(Extent::One(256)), Some(Extent::Exact([224, 224]))));
    assert_eq!((large.resize, large.crop), (Some(Extent::Exact([384, 384])), None));
    assert_eq!(large.mean, [0.5; 3]);
}

#[test]
fn keys_of_single_processors_do_what_those_do() {
    let mobilevit = read(json!({"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 288},
        "crop_size": {"height": 256, "width": 256}, "do_flip_channel_order": true, "resample": 2}));
    assert_eq!((mobilevit.channel_order, mobilevit.std), (ChannelOrder::Bgr, [1.0; 3]));
    let efficientnet = |offset: bool, top: bool, normalize: bool| {
        read(json!({"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": offset,
            "resample": 3, "include_top": top, "do_normalize": normalize, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 2.0]}))
    };
    // ((x − 1) − mean) / std / std
    let both = efficientnet(true, true, true);
    assert_eq!((both.mean, both.std), ([1.5, 1.4, 1.3], [0.25, 0.0625, 4.0]));
    let offset = efficientnet(true, false, false);
    assert_eq!((offset.mean, offset.std), ([1.0; 3], [1.0; 3]));
    assert_eq!(offset.resize, Some(Extent::Exact([346, 346])));
    let levit = read(json!({"feature_extractor_type": "LevitFeatureExtractor", "size": 224, "crop_size": 224}));
    assert_eq!((levit.resize, levit.crop), (Some(Extent::One(256)), Some(Extent::Exact([224, 224]))));
    let poolformer = read(json!({"image_processor_type": "PoolFormerImageProcessor"}));
    assert_eq!((poolformer.resize, poolformer.crop), (Some(Extent::One(248)), Some(Extent::Exact([224, 224]))));
    let rtdetr =
        read(json!({"image_processor_type": "RTDetrImageProcessorFast", "do_pad": false, "format": "coco_detection",
        "do_normalize": false, "size": {"height": 640, "width": 640}, "image_mean": [0.485, 0.456, 0.406]}));
    assert_eq!((rtdetr.resize, rtdetr.std), (Some(Extent::Exact([640, 640])), [1.0; 3]));
}

#[test]
fn a_number_means_what_the_processor_makes_of_it() {
    let of = |class: &str| read(json!({"feature_extractor_type": class, "size": 256, "crop_size": 224})).resize;
    assert_eq!(of("DeiTFeatureExtractor"), Some(Extent::Exact([256, 256])));
    assert_eq!(of("ViTFeatureExtractor"), Some(Extent::Exact([256, 256])));
    assert_eq!(of("CLIPFeatureExtractor"), Some(Extent::One(256)));
    assert!(refusal(json!({"size": 256})).contains("`size`"));
}

#[test]
fn what_is_not_understood_is_refused() {
    assert!(refusal(json!({"size": "big"})).contains("`size`"));
    assert!(refusal(json!({"size": {"shortest_edge": 800, "longest_edge": 1333}})).contains("longest_edge"));
    assert!(refusal(json!({"image_std": [0, 0, 0], "image_mean": [0, 0, 0]})).contains("`std`"));
    assert!(refusal(json!({"image_processor_type": "Sam3ImageProcessor"})).contains("Sam3ImageProcessor"));
    for key in ["do_pad", "do_grayscale", "do_thumbnail", "crop_to_patches", "do_flip_channel_order", "do_invent"] {
        let vit = |value: bool| json!({"image_processor_type": "ViTImageProcessor", key: value});
        assert!(refusal(vit(true)).contains(key));
        assert!(parse(&vit(false), None).is_ok(), "{key}");
    }
    assert!(refusal(json!({"image_processor_type": 3, "size": 4})).contains("`image_processor_type` is 3; a name"));
    let long = refusal(json!({"image_processor_type": "ViTImageProcessor", "do_invent": vec!["ä"; 1 << 20]}));
    assert!(long.contains("do_invent") && long.len() < 500, "{} bytes", long.len());
    let multiple = json!({"image_processor_type": "DPTImageProcessor", "ensure_multiple_of": 14});
    assert!(refusal(multiple).contains("ensure_multiple_of"));
}

#[test]
fn a_resize_that_is_off_leaves_the_size_as_it_is() {
    let of = |json: Value| parse(&json, Some([64, 48])).unwrap().resize;
    assert_eq!(of(json!({})), Some(Extent::Exact([64, 48])), "a size is left to the model");
    assert_eq!(of(json!({"do_resize": false})), None);
    assert_eq!(of(json!({"image_processor_type": "ViTImageProcessor", "do_resize": false})), None);
    let clip = json!({"image_processor_type": "CLIPImageProcessor", "do_resize": false, "do_center_crop": false});
    assert_eq!(of(clip), None);
}

#[test]
fn channels_last_is_the_layout() {
    let of = |format: Value| read(json!({"data_format": format})).layout;
    assert_eq!(of(json!("channels_last")), Some(Layout::Nhwc));
    assert_eq!((of(json!("channels_first")), of(Value::Null)), (None, None));
    assert!(refusal(json!({"data_format": "last"})).contains("`data_format` is \"last\""));
}

#[test]
fn a_filter_that_releases_differ_in_must_be_said() {
    for class in ["ConvNext", "EfficientNet", "MobileViT", "Pvt"] {
        let file =
            |key: &str, value: Value| json!({"image_processor_type": format!("{class}ImageProcessor"), key: value});
        let refused = refusal(file("do_resize", json!(true)));
        assert!(refused.contains("`resample` is missing") && refused.contains(class), "{refused}");
        assert_eq!(read(file("resample", json!(0))).interpolation, Interpolation::Nearest);
        assert_eq!(read(file("do_resize", json!(false))).resize, None);
    }
}

/// Every class that is known, with what its file needs so that nothing is missing.
fn whole(class: &Class) -> Map<String, Value> {
    let size = match class.resizing {
        Resizing::Square | Resizing::Boxes => json!({"height": 64, "width": 64}),
        _ => json!({"shortest_edge": 64}),
    };
    let json = json!({"image_processor_type": format!("{}ImageProcessor", class.name), "size": size, "resample": 2,
        "do_center_crop": false});
    json.as_object().unwrap().clone()
}

/// What `transformers` 4.57 makes of `do_center_crop: true`, read from its slow and its fast processors.
#[test]
fn keys_that_a_processor_does_not_have_are_refused_by_name() {
    let cutting = [
        "Beit",
        "Bit",
        "ChineseCLIP",
        "CLIP",
        "DeiT",
        "EfficientNet",
        "Levit",
        "MobileNetV1",
        "MobileNetV2",
        "MobileViT",
        "PoolFormer",
    ];
    let only_fast = ["Blip", "ConvNext", "DPT", "Pvt", "Siglip", "ViT"];
    for class in CLASSES {
        let with = |keys: &[(&str, Value)]| {
            let mut file = whole(class);
            file.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            parse(&Value::Object(file), None)
        };
        let plain = with(&[]).unwrap();
        let cut = with(&[("do_center_crop", json!(true)), ("crop_size", json!(32))]);
        match cut {
            Ok(cut) => {
                assert!(cutting.contains(&class.name), "{}", class.name);
                assert_eq!(cut.crop, Some(Extent::Exact([32, 32])), "{}", class.name);
            }
            Err(reason) if only_fast.contains(&class.name) => {
                let expected = format!("`do_center_crop` is true, which the fast image processor of {} in", class.name);
                assert!(reason.contains(&expected), "{reason}");
            }
            Err(reason) => {
                assert!(!cutting.contains(&class.name), "{reason}");
                let expected = format!("`do_center_crop` is true, which is not supported for {}", class.name);
                assert!(reason.contains(&expected), "{reason}");
            }
        }
        // Off, or null as fast processors write it, does nothing.
        let off = [("do_center_crop", Value::Bool(false)), ("crop_size", json!(32)), ("do_pad", Value::Null)];
        assert_eq!(with(&off).unwrap(), plain, "{}", class.name);
        let half = [("image_mean", json!([0.5, 0.5, 0.5])), ("image_std", json!([0.25, 0.25, 0.25]))];
        let on = [("do_normalize", json!(true))];
        if ["MobileViT", "SuperPoint"].contains(&class.name) {
            for (key, keys) in [("do_normalize", &on[..]), ("image_mean", &half[..]), ("image_std", &half[1..])] {
                let reason = with(keys).unwrap_err();
                assert!(reason.contains(&format!("`{key}` is ")) && reason.contains(class.name), "{reason}");
            }
            for off in [json!(false), Value::Null] {
                let off = [&half[..], &[("do_normalize", off)]].concat();
                assert_eq!(with(&off).unwrap(), plain, "{}", class.name);
            }
        } else {
            assert_eq!(with(&[&half[..], &on].concat()).unwrap().mean, [0.5; 3], "{}", class.name);
        }
    }
    let alone = |class: &str| json!({"image_processor_type": class, "size": {"height": 8, "width": 8}, "crop_size": 4});
    assert_eq!(read(alone("ViTImageProcessorFast")).crop, None, "nothing asks for a crop");
    assert!(
        refusal(alone("SegformerImageProcessor")).contains("`crop_size` is 4, which is not supported for Segformer")
    );
    let clip = |key: &str, value: Value| json!({"image_processor_type": "CLIPImageProcessor", "size": 64, key: value});
    assert_eq!(read(clip("default_to_square", json!(false))).resize, Some(Extent::One(64)));
    assert!(refusal(clip("default_to_square", json!(true))).contains("`default_to_square` is true, which the fast"));
    assert!(
        refusal(clip("input_data_format", json!("channels_last"))).contains("`input_data_format` is \"channels_last\"")
    );
    assert!(
        refusal(json!({"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0})).contains("`crop_pct` is 0")
    );
}

#[test]
fn a_detector_without_a_size_takes_its_own_or_is_refused() {
    let of = |class: &str| json!({"image_processor_type": format!("{class}ImageProcessor"), "resample": 3});
    let model = Some([320, 320]);
    assert_eq!(parse(&of("RTDetr"), model).unwrap().resize, Some(Extent::Exact([640, 640])));
    for class in ["ConditionalDetr", "DeformableDetr", "Detr", "Yolos"] {
        let reason = parse(&of(class), model).unwrap_err();
        assert!(
            reason.contains(&format!("`size` is missing, and {class} then makes the shorter side 800")),
            "{reason}"
        );
        let mut unresized = of(class);
        unresized["do_resize"] = json!(false);
        assert_eq!(parse(&unresized, model).unwrap().resize, None);
    }
    // The slow processor resizes to 256 and cuts 224 out, the fast one resizes to 224.
    let mut beit = of("Beit");
    assert!(
        refusal(beit.clone())
            .contains("`do_center_crop` is missing, which the slow and the fast image processor of Beit")
    );
    beit["do_center_crop"] = json!(true);
    assert!(refusal(beit.clone()).contains("`size` is missing"));
    beit["size"] = json!(256);
    let both = read(beit.clone());
    assert_eq!((both.resize, both.crop), (Some(Extent::Exact([256, 256])), Some(Extent::Exact([224, 224]))));
    beit["do_center_crop"] = Value::Null;
    assert_eq!(read(beit).crop, None, "off for both");
}

#[test]
fn null_says_nothing_where_the_default_is_on() {
    let off = |class: &Class, key: &str| match key {
        "do_resize" | "do_rescale" => false,
        "do_normalize" => !class.normalize,
        "do_center_crop" => class.center_crop != Some(true),
        _ => !class.keys.contains(&key) || key == "rescale_offset",
    };
    let keys = [
        "do_resize",
        "do_rescale",
        "do_normalize",
        "do_center_crop",
        "do_flip_channel_order",
        "include_top",
        "rescale_offset",
    ];
    for (class, key) in CLASSES.iter().flat_map(|class| keys.map(|key| (class, key))) {
        let mut file = whole(class);
        file.insert(key.to_owned(), Value::Null);
        match parse(&Value::Object(file), None) {
            Ok(_) => assert!(off(class, key), "{} {key}", class.name),
            Err(reason) => {
                assert!(!off(class, key) && reason.contains(&format!("`{key}` is null")), "{} {reason}", class.name);
            }
        }
    }
    let share = |class: &str| json!({"image_processor_type": class, "size": 224, "resample": 3, "crop_pct": null});
    assert!(refusal(share("PoolFormerImageProcessor")).contains("`crop_pct` is null"));
    assert_eq!(read(share("ConvNextImageProcessor")).resize, Some(Extent::One(256)), "the default for both");
    assert!(refusal(json!({"do_rescale": null})).contains("`do_rescale` is null"));
}

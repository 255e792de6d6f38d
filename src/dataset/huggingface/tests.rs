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

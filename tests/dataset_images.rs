//! Decoding, resizing and preprocessing against arrays made with Pillow (`scripts/make_image_fixtures.py`).

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use trtcalib::{
    dataset::{
        Collection, DataOptions, DatasetError, Extent, InputSpec, Interpolation, Preprocess, RgbImage, decode, open,
        resize,
    },
    npz::{read_npy, read_npz},
    tensor::{ElementType, Tensor, Values},
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

fn fixture(name: &str) -> Vec<u8> {
    let path = folder().join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn picture(tensor: &Tensor) -> RgbImage {
    let (Values::U8(data), &[height, width, ref rest @ ..]) = (tensor.values(), tensor.shape()) else {
        panic!("not a picture: {:?}", tensor.shape());
    };
    let data = if rest.is_empty() { data.iter().flat_map(|&v| [v; 3]).collect() } else { data.clone() };
    RgbImage { width, height, data }
}

/// The largest difference from Pillow's pixels.
fn difference(name: &str) -> u8 {
    let stem = name.split('.').next().unwrap();
    let expected = picture(&read_npy(&folder().join(format!("{stem}.npy"))).unwrap());
    let found = decode(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!((found.width, found.height), (expected.width, expected.height), "{name}");
    found.data.iter().zip(&expected.data).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn lossless_formats_decode_to_the_pixels_of_pillow() {
    for name in [
        "png_rgba.png",
        "png_la.png",
        "png_palette.png",
        "png_palette_alpha.png",
        "png_1bit.png",
        "png_grey4.png",
        "png_rgb16.png",
        "png_grey16.png",
        "png_one_pixel.png",
        "webp_lossless.webp",
        "webp_alpha.webp",
        "webp_animated.webp",
        "bmp_24.bmp",
        "bmp_palette.bmp",
    ] {
        assert_eq!(difference(name), 0, "{name}");
    }
}

/// With the feature `turbojpeg` every JPEG is exact, CMYK included.
#[test]
fn lossy_formats_decode_within_their_tolerance() {
    for (name, tolerance) in [
        ("jpeg_444.jpg", 3),
        ("jpeg_420.jpg", 5),
        ("jpeg_progressive.jpg", 3),
        ("jpeg_grey.jpg", 2),
        ("jpeg_cmyk.jpg", 3),
        ("jpeg_ycck.jpg", 4),
        ("webp_lossy.webp", 2),
    ] {
        let exact = cfg!(feature = "turbojpeg") && name.starts_with("jpeg");
        let found = difference(name);
        assert!(found <= if exact { 0 } else { tolerance }, "{name}: {found}");
    }
}

#[test]
fn exif_orientations_turn_the_picture() {
    for orientation in 2..=8 {
        let name = format!("jpeg_exif{orientation}.jpg");
        assert!(difference(&name) <= 3, "{name}");
    }
}

#[test]
fn bad_files_are_refused_with_the_reason() {
    for (name, reason) in [
        ("bad_empty.jpg", "the file is empty"),
        ("bad_truncated.jpg", "cut off"),
        ("bad_truncated.png", "cannot be decoded"),
        ("bad_huge.jpg", "30000×30000 pixels are more than the limit of 178956970"),
        ("bad_huge.png", "30000×30000 pixels are more than the limit of 178956970"),
        ("bad_text.jpg", "this is not a JPEG, PNG, WebP or BMP image"),
    ] {
        let error = decode(&fixture(name)).unwrap_err();
        assert!(error.contains(reason), "{name}: {error}");
    }
}

#[test]
fn resizing_equals_pillow_to_the_last_bit() {
    let arrays = read_npz(&folder().join("resize.npz")).unwrap();
    let (source, large) = (picture(&arrays["source"]), picture(&arrays["large"]));
    let filters = [
        ("nearest", Interpolation::Nearest),
        ("box", Interpolation::Box),
        ("bilinear", Interpolation::Bilinear),
        ("hamming", Interpolation::Hamming),
        ("bicubic", Interpolation::Bicubic),
        ("lanczos", Interpolation::Lanczos),
    ];
    let mut checked = 0;
    for (key, expected) in arrays.iter().filter(|(key, _)| key.contains('_') && !key.contains("grey")) {
        let expected = picture(expected);
        let (_, filter) = filters.iter().find(|(name, _)| key.starts_with(name)).unwrap();
        let from = if key.ends_with("large") { &large } else { &source };
        assert!(resize(from, expected.width, expected.height, *filter) == expected, "{key}");
        checked += 1;
    }
    assert_eq!(checked, 6 * 8);
}

/// The tensor that the file `picture.png` becomes in a data set for a model with one input of this type and shape.
fn sample(source: &RgbImage, element_type: ElementType, shape: [usize; 4], preprocess: &Preprocess) -> Tensor {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.png");
    let image = image::RgbImage::from_raw(source.width as u32, source.height as u32, source.data.clone()).unwrap();
    image.save(&path).unwrap();
    let shape = shape.map(Some).to_vec();
    let input = InputSpec { name: "x".to_owned(), element_type: Some(element_type), shape };
    let collection = open(&DataOptions {
        path: folder.path(),
        labels: None,
        classes: &BTreeMap::new(),
        category_ids: &[],
        key_points: None,
        inputs: &[input],
        preprocess: Some(preprocess),
    });
    collection.unwrap().dataset.sample(0).unwrap().remove("x").unwrap()
}

#[test]
fn whole_chains_equal_pillow_and_numpy_to_the_last_bit() {
    let arrays = read_npz(&folder().join("preprocess.npz")).unwrap();
    let preset = |name: &str, side| Preprocess::preset(name, side, side).unwrap();
    let padded = Preprocess { crop: Some(Extent::One(48)), scale: 1.0, ..Preprocess::default() };
    for key in ["61x43", "40x71", "33x34", "20x90"] {
        let source = picture(&arrays[&format!("source_{key}")]);
        for (name, element_type, shape, preprocess) in [
            ("imagenet", ElementType::F32, [1, 3, 32, 32], preset("imagenet", 32)),
            ("imagenet-lite", ElementType::F32, [1, 32, 32, 3], preset("imagenet-lite", 32)),
            ("padded", ElementType::U8, [1, 3, 48, 48], padded.clone()),
            ("unit", ElementType::F16, [1, 1, 16, 16], preset("unit", 16)),
        ] {
            let found = sample(&source, element_type, shape, &preprocess);
            assert!(found == arrays[&format!("{name}_{key}")], "{name} {key}");
        }
    }
}

/// The data at `path`, as a model of one input of 8 × 8 takes them.
fn opened(path: &Path) -> Result<Collection, DatasetError> {
    let shape = vec![Some(1), Some(3), Some(8), Some(8)];
    let input = InputSpec { name: "x".to_owned(), element_type: Some(ElementType::F32), shape };
    let preprocess = Preprocess { resize: Some(Extent::Exact([8, 8])), ..Preprocess::default() };
    open(&DataOptions {
        path,
        labels: None,
        classes: &BTreeMap::from([(7, "hen".to_owned())]),
        category_ids: &[],
        key_points: None,
        inputs: &[input],
        preprocess: Some(&preprocess),
    })
}

/// Its ids, labels and notes.
fn listed(path: &Path) -> (Vec<(String, Option<u32>)>, Vec<String>) {
    let collection = opened(path).unwrap();
    let dataset = &*collection.dataset;
    let samples = (0..dataset.len()).map(|index| {
        assert!(dataset.sample(index).is_ok(), "{}", dataset.id(index));
        (dataset.id(index).to_owned(), dataset.label(index))
    });
    (samples.collect(), collection.notes)
}

fn write_picture(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::new(9, 9).save(path).unwrap();
}

#[test]
fn lists_may_have_a_header_a_byte_order_mark_names_of_classes_and_paths_of_windows() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.png", "in/b c.png"] {
        write_picture(&folder.path().join(name));
    }
    let list = folder.path().join("list.txt");
    for (text, second) in [
        ("a.png,3\nin/b c.png,4\n", "in/b c.png"),
        ("file,label\r\na.png,3\r\nin/b c.png,4\r\n", "in/b c.png"),
        ("\u{feff}a.png 3\nin/b c.png 4\n", "in/b c.png"),
        ("file,label,name\na.png,3,hen\nin/b c.png,4,cock\n", "in/b c.png"),
        ("a.png\t3\nin\\b c.png\t4\n", "in\\b c.png"),
    ] {
        std::fs::write(&list, text).unwrap();
        let expected = vec![("a.png".to_owned(), Some(3)), (second.to_owned(), Some(4))];
        assert_eq!(listed(&list).0, expected, "{text}");
    }
    std::fs::write(&list, "a.png\nin/b c.png\n").unwrap();
    assert!(listed(&list).0.iter().all(|(_, label)| label.is_none()));
}

#[test]
fn class_folders_that_are_merely_counted_are_told() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["hen/a.png", "tench/b.png"] {
        write_picture(&folder.path().join(name));
    }
    let (samples, notes) = listed(folder.path());
    assert_eq!(samples.iter().map(|(_, label)| label.unwrap()).collect::<Vec<_>>(), [0, 1]);
    assert!(notes[0].contains("`hen` being class 0 and `tench` class 1"), "{notes:?}");
    assert!(notes[0].contains("since `tench` stands in no class list"), "{notes:?}");
    std::fs::remove_dir_all(folder.path().join("tench")).unwrap();
    write_picture(&folder.path().join("7/b.png"));
    std::fs::rename(folder.path().join("hen"), folder.path().join("2")).unwrap();
    let (samples, notes) = listed(folder.path());
    assert_eq!((samples[0].1, samples[1].1, notes.len()), (Some(2), Some(7), 0));
}

/// Against `scripts/make_opencv_fixtures.py`.
#[test]
fn resizing_and_letterboxes_equal_opencv_to_the_last_bit() {
    let arrays = read_npz(&folder().join("opencv.npz")).unwrap();
    let mut checked = 0;
    for name in ["source", "tall", "same", "dot"] {
        let source = picture(&arrays[name]);
        for (key, expected) in arrays.iter().filter(|(key, _)| key.starts_with(&format!("resize_{name}_"))) {
            let expected = picture(expected);
            let found = resize(&source, expected.width, expected.height, Interpolation::Opencv);
            assert!(found == expected, "{key}");
            checked += 1;
        }
        for preset in ["yolo", "yolox"] {
            let preprocess = Preprocess::preset(preset, 64, 80).unwrap();
            let found = sample(&source, ElementType::F32, [1, 3, 64, 80], &preprocess);
            assert!(found == arrays[&format!("{preset}_{name}")], "{preset}_{name}");
            checked += 1;
        }
    }
    assert_eq!(checked, 4 * (11 + 2));
}

#[test]
fn what_most_files_are_is_read_and_the_rest_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| write_picture(&folder.path().join(name));
    let arrays = |name: &str| {
        std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(folder.path().join(name), b"no matter").unwrap();
    };
    ["a.png", "b.png"].into_iter().for_each(write);
    arrays("cache/features.npz");
    assert!(trtcalib::dataset::holds_images(folder.path()));
    arrays("c.tif");
    let (samples, notes) = listed(folder.path());
    assert_eq!(samples.len(), 2);
    let [below, beside] = &notes[..] else { panic!("{notes:?}") };
    assert!(below.contains("1 in folders that are not read, as cache/features.npz: the folder itself"), "{notes:?}");
    assert!(beside.contains("1 with .tif, as c.tif"), "{notes:?}");
    std::fs::remove_dir_all(folder.path().join("cache")).unwrap();
    // As many below: those of the folder itself.
    ["x/1.png", "y/2.png"].into_iter().for_each(write);
    let (samples, notes) = listed(folder.path());
    assert_eq!(samples.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a.png", "b.png"]);
    assert!(notes[0].contains("2 in folders that are not read, as x/1.png: the folder itself"), "{notes:?}");
    write("y/3.png");
    let (samples, notes) = listed(folder.path());
    let ids: Vec<_> = samples.iter().map(|(id, label)| (id.as_str(), label.unwrap())).collect();
    assert_eq!(ids, [("x/1.png", 0), ("y/2.png", 1), ("y/3.png", 1)]);
    assert!(notes.iter().any(|note| note.contains("2 with .png, as a.png: it lies beside")), "{notes:?}");
    // Deeper than classes, beside a link that leads in a circle; arrays among pictures.
    std::fs::create_dir_all(folder.path().join("x/more/still")).unwrap();
    write("x/more/still/4.png");
    arrays("y/stats.npy");
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path(), folder.path().join("x/more/up")).unwrap();
    let (samples, notes) = listed(folder.path());
    assert_eq!(samples.len(), 3);
    let told = |what: &str| assert!(notes.iter().any(|note| note.contains(what)), "{what}: {notes:?}");
    told("1 in folders that are not read, as x/more/still/4.png: only the folder and those right in it");
    told("1 with .npy, as y/stats.npy: it holds arrays, and the samples are pictures");
    // More of them than there: which are meant?
    ["x/more/5.png", "x/more/6.png", "x/more/7.png"].into_iter().for_each(write);
    let error = opened(folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("3 samples lie in it or right in its folders, and 4 deeper, as x/more/5.png; give"),
        "{error}"
    );
    for name in ["1", "2", "3", "4"] {
        arrays(&format!("arrays/{name}.npz"));
    }
    assert!(!trtcalib::dataset::holds_images(folder.path()));
}

#[test]
fn hidden_pictures_and_such_as_are_not_read_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    let foreign = |name: &str| std::fs::write(path(name), b"no matter").unwrap();
    write_picture(&path(".thumbs/a.png"));
    write_picture(&path(".thumbs/more/b.png"));
    write_picture(&path(".c.png"));
    foreign("d.tif");
    foreign("cats/e.gif");
    foreign("cats/deep/f.TIFF");
    let told = [
        "2 in folders that are not read, as .thumbs/a.png: names that begin with a dot are hidden",
        "1 with .png, as .c.png: names that begin with a dot are hidden",
        "1 with .tif, as d.tif: its ending is not one of those that are read",
        "2 in folders that are not read, as cats/deep/f.TIFF: its ending is not one of those that are read",
    ];
    let error = opened(folder.path()).map(|_| ()).unwrap_err().to_string();
    for told in told {
        assert!(error.contains("it holds no samples") && error.contains(told), "{told}: {error}");
    }
    // Beside samples it is a note, however many there are.
    write_picture(&path("g.png"));
    let (samples, notes) = listed(folder.path());
    assert_eq!(samples.len(), 1);
    let notes = notes.join("; ");
    for told in told {
        assert!(notes.contains(told), "{told}: {notes}");
    }
}

#[test]
fn a_folder_whose_samples_lie_too_deep_says_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("train/cat")).unwrap();
    write_picture(&folder.path().join("train/cat/1.png"));
    let options = DataOptions {
        path: folder.path(),
        labels: None,
        classes: &BTreeMap::new(),
        category_ids: &[],
        key_points: None,
        inputs: &[InputSpec { name: "x".to_owned(), element_type: None, shape: vec![None, Some(3), None, None] }],
        preprocess: None,
    };
    let error = open(&options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("1 in folders that are not read, as train/cat/1.png"), "{error}");
}

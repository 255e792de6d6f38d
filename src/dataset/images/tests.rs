//! Layouts, and what folders hold.

use super::*;

fn input(shape: [Option<usize>; 4]) -> InputSpec {
    InputSpec { name: "x".to_owned(), element_type: Some(ElementType::F32), shape: shape.to_vec() }
}

#[test]
fn the_layout_is_read_off_the_shape() {
    let nchw = ImageInput::of(&[input([None, Some(3), Some(8), Some(9)])], None).unwrap();
    assert_eq!((nchw.layout, nchw.size), (Layout::Nchw, [Some(8), Some(9)]));
    let nhwc = ImageInput::of(&[input([Some(1), Some(8), Some(9), Some(3)])], None).unwrap();
    assert_eq!((nhwc.layout, nhwc.size), (Layout::Nhwc, [Some(8), Some(9)]));
    assert!(ImageInput::of(&[input([None, Some(5), Some(8), Some(9)])], None).is_err());
    assert!(ImageInput::of(&[], None).is_err());
    for (shape, stated, right) in [
        ([None, Some(3), Some(8), Some(9)], Layout::Nhwc, "axis 1, and the preprocessing puts them on axis 3"),
        ([None, None, None, Some(1)], Layout::Nchw, "is nhwc (channels_last)"),
    ] {
        let error = ImageInput::of(&[input(shape)], Some(stated)).unwrap_err().to_string();
        assert!(error.contains(right), "{error}");
    }
    assert!(ImageInput::of(&[input([None, Some(3), Some(8), Some(3)])], Some(Layout::Nhwc)).is_ok());
}

#[test]
fn class_folders_and_strange_names() {
    let folder = tempfile::tempdir().unwrap();
    for (class, file) in [("10", "a b.png"), ("2", "c\nd.PNG"), ("2", "notes.txt"), ("2", ".hidden.png")] {
        std::fs::create_dir_all(folder.path().join(class)).unwrap();
        std::fs::write(folder.path().join(class).join(file), b"x").unwrap();
    }
    let listing = list(folder.path(), &["png"], None).unwrap();
    let ids: Vec<&str> = listing.files.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["10/a b.png", "2/c\nd.PNG"]);
    assert_eq!(folder_labels(&listing, &ids, &BTreeMap::new()), Ok((vec![Some(10), Some(2)], None)));
    let skipped: Vec<_> = listing.skipped.iter().map(|skipped| skipped.sample.as_str()).collect();
    assert_eq!(skipped, ["2/.hidden.png", "2/notes.txt"]);
}

#[test]
fn a_class_folder_without_pictures_is_refused_where_folders_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", ".hidden"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    for file in ["a/0.png", "c/0.png", ".hidden/0.tif"] {
        std::fs::write(folder.path().join(file), "").unwrap();
    }
    let ids = ["a/0.png", "c/0.png"];
    let of = |classes: &[&str]| {
        let classes = (0..).zip(classes.iter().map(|name| (*name).to_owned())).collect();
        folder_labels(&list(folder.path(), &["png"], None).unwrap(), &ids, &classes)
    };
    let empty = of(&[]).unwrap_err();
    assert!(empty.contains("the folder `b` holds no picture that is read (no file)"), "{empty}");
    assert!(empty.contains("remove it") && empty.contains("--labels"), "{empty}");
    for file in ["b/1.tif", "b/2.tif"] {
        std::fs::write(folder.path().join(file), "").unwrap();
    }
    let foreign = of(&["a", "b"]).unwrap_err();
    assert!(foreign.contains("`b` holds no picture that is read (2 that are left out, as b/1.tif: its"), "{foreign}");
    // Results of this program's are not a class, wherever they lie.
    std::fs::create_dir_all(folder.path().join("b/model")).unwrap();
    std::fs::write(folder.path().join("b/model/run.toml"), "").unwrap();
    assert_eq!(of(&[]).unwrap().0, [Some(0), Some(1)]);
    // Classes by name keep their numbers whatever is missing.
    assert_eq!(of(&["a", "b", "c"]), Ok((vec![Some(0), Some(2)], None)));
    std::fs::remove_dir_all(folder.path().join("b")).unwrap();
    for moves_nothing in ["z", "__MACOSX"] {
        std::fs::create_dir(folder.path().join(moves_nothing)).unwrap();
    }
    assert_eq!(of(&[]).unwrap().0, [Some(0), Some(1)], "hidden folders are not classes, nor those of systems");
    // So do indices.
    for (from, to) in [("a", "0"), ("c", "2")] {
        std::fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
    }
    std::fs::create_dir(folder.path().join("1")).unwrap();
    let listing = list(folder.path(), &["png"], None).unwrap();
    assert_eq!(listing.empty, ["1", "__MACOSX", "z"]);
    let labels = folder_labels(&listing, &["0/0.png", "2/0.png"], &BTreeMap::new());
    assert_eq!(labels, Ok((vec![Some(0), Some(2)], None)));
}

#[cfg(unix)]
#[test]
fn a_class_folder_that_is_a_link_to_nowhere_cannot_be_read() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    for class in ["a", "c"] {
        std::fs::create_dir(folder.path().join(class)).unwrap();
        std::fs::write(folder.path().join(class).join("0.png"), "").unwrap();
    }
    symlink("nowhere", folder.path().join("d.png")).unwrap();
    assert_eq!(list(folder.path(), &["png"], None).unwrap().classes, ["a", "c"]);
    symlink("nowhere", folder.path().join("b")).unwrap();
    let error = list(folder.path(), &["png"], None).err().unwrap().to_string();
    assert!(error.contains(&folder.path().join("b").display().to_string()), "{error}");
    // Beside the samples themselves, it is no matter.
    for name in ["0.png", "1.png", "2.png"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    assert_eq!(list(folder.path(), &["png"], None).unwrap().files.len(), 4);
}

#[cfg(unix)]
#[test]
fn names_that_are_no_text_stay_apart() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"a\xff\xfe.png");
    assert_eq!(escape(name), "a\\xff\\xfe.png");
}

#[test]
fn masks_and_boxes_have_hashes_of_their_content() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = [input([None, Some(3), Some(8), Some(9)])];
    let hashes = |labels: &str, files: &[(&str, &str)]| {
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for name in ["a", "b", "c"] {
            write(&format!("data/{name}.jpg"), "");
        }
        for (name, text) in files {
            write(&format!("{labels}/{name}"), text);
        }
        let found = crate::dataset::open(&crate::dataset::DataOptions {
            path: &folder.path().join("data"),
            labels: Some(&folder.path().join(labels)),
            classes: &BTreeMap::new(),
            category_ids: &[],
            key_points: None,
            inputs: &inputs,
            preprocess: None,
        });
        let dataset = found.unwrap().dataset;
        [0, 1, 2].map(|index| dataset.truth_hash(index))
    };
    let [a, b, c] = hashes("masks", &[("a.png", "a"), ("b.png", "b"), ("README.txt", "Masks.")]);
    assert!(a.is_some() && b.is_some() && a != b && c.is_none());
    assert_eq!(hashes("others", &[("a.png", "a"), ("b.png", "x")])[0], a);
    let boxes = [("a.txt", "0 0.5 0.5 0.2 0.2"), ("b.txt", "1 0.5 0.5 0.2 0.2"), ("c.txt", "0 0.5  0.5 0.2 0.2\n")];
    let [a, b, c] = hashes("boxes", &boxes);
    assert!(a.is_some() && a != b && a == c, "by their content, however it is written");
}

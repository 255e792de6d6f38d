use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn open(path: &Path, classes: &BTreeMap<u32, String>, category_ids: &[u64]) -> Result<Option<BoxLabels>, DatasetError> {
    let known = Known { classes, category_ids, key_points: None };
    if path.is_dir() {
        let files = super::super::label_folder::LabelFolder::open(path, std::iter::empty)?.files;
        return BoxLabels::yolo(path, files, known).map(Some);
    }
    BoxLabels::open(path, known)
}

#[test]
fn yolo_boxes_polygons_and_pictures_without_objects() {
    let folder = folder(&[("a.txt", "2 0.5 0.5 0.2 0.4\n\n0 0.1 0.1 0.3 0.1 0.3 0.5\n"), ("b.txt", "")]);
    let mut labels = open(folder.path(), &BTreeMap::new(), &[]).unwrap().unwrap();
    let found = labels.assign(&["x/a.jpg", "b.jpg", "c.png"]).unwrap();
    let boxes = found[0].as_ref().unwrap().of(100, 50);
    let rounded = |truth: &Truth| (truth.class, truth.corners.map(|x| x.round() as i32), truth.area.round() as i32);
    assert_eq!(boxes.iter().map(rounded).collect::<Vec<_>>(), [(2, [40, 15, 60, 35], 400), (0, [10, 5, 30, 25], 400)]);
    assert_eq!((found[1].as_ref().unwrap().of(9, 9), found[2].as_ref().unwrap().of(9, 9)), (vec![], vec![]));
    assert_eq!(labels.notes, ["1 of 3 pictures are not in the labels and count as without objects"]);
    assert_eq!(labels.labelled_classes(), LabelledClasses { last: Some(2), places: None });
    labels.assign(&["a.jpg"]).unwrap();
    assert_eq!(labels.notes[1], "1 of 2 label files belong to no picture of the data, first `b.txt`");
    let strange = labels.assign(&["z.jpg"]).unwrap_err().to_string();
    assert!(strange.contains("it has `a`, the data has `z.jpg`"), "{strange}");
}

#[test]
fn a_pose_is_its_box() {
    let pose = |points: usize, point: &str| format!("0 0.5 0.5 0.2 0.4{}", point.repeat(points));
    let of_box = yolo_line("0 0.5 0.5 0.2 0.4", None).unwrap();
    for points in [1, 17] {
        assert_eq!(yolo_line(&pose(points, " 0.1 0.9 2"), None).unwrap(), of_box);
    }
    // Even numbers are corners of a polygon, unless the shape of key points is known.
    for (points, point, numbers) in [(17, " 0.1 0.9", 2), (24, " 0.1 0.9 1", 3)] {
        let line = pose(points, point);
        assert_eq!(yolo_line(&line, Some([points, numbers])).unwrap(), of_box);
        assert_ne!(yolo_line(&line, None).unwrap(), of_box);
    }
    assert_ne!(yolo_line("0 0.1 0.1 0.3 0.1 0.3 0.5", Some([17, 2])).unwrap(), of_box);
}

#[test]
fn what_is_wrong_in_yolo_files_is_told() {
    for (line, reason) in [
        ("1 0.5 0.5 0.2", "4 numbers are neither"),
        ("1 0.5 0.5 x 0.2", "are not numbers"),
        ("1 250 0.5 0.2 0.2", "these are pixels"),
        ("-1 0.5 0.5 0.2 0.2", "-1 is not a class index"),
        ("1 0.5 0.5 inf 0.2", "not finite"),
        ("1 0.5 0.5 0.2 -0.2", "height is negative"),
    ] {
        let folder = folder(&[("a.txt", line)]);
        let error = open(folder.path(), &BTreeMap::new(), &[]).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains(reason), "{error}");
    }
    let folder = folder(&[("a.txt", "7 0.95 0.5 0.2 0.2"), ("b.txt", "0 0.5 0.5 0 0.2")]);
    let classes = BTreeMap::from([(0, "cat".to_owned())]);
    let notes = open(folder.path(), &classes, &[]).unwrap().unwrap().notes;
    assert!(
        notes[0].contains("beyond their picture, first in `a.txt`")
            && notes[1] == "1 labelled boxes have no width or no height and are never found, first in `b.txt`"
            && notes[2].ends_with("known: 7"),
        "{notes:?}"
    );
}

const COCO: &str = r#"{"images": [{"id": 9, "file_name": "a.jpg", "width": 200, "height": 100}, {"id": 10, "file_name": "b.jpg"}],
    "annotations": [{"id": 0, "image_id": 9, "category_id": 18, "bbox": [20, 10, 40, 30], "area": 700, "iscrowd": 0},
        {"image_id": 9, "category_id": 3, "bbox": [0, 0, 10, 10], "iscrowd": 1},
        {"image_id": 77, "category_id": 3, "bbox": [0, 0, 1, 1]}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 5, "name": "bus"}]}"#;

#[test]
fn coco_with_gaps_crowds_and_another_size() {
    let folder = folder(&[("instances.json", COCO)]);
    let path = folder.path().join("instances.json");
    let opened = |classes: &[(u32, &str)], ids: &[u64]| {
        let classes = classes.iter().map(|&(index, name)| (index, name.to_owned())).collect();
        let mut labels = open(&path, &classes, ids).unwrap().unwrap();
        let boxes = labels.assign(&["a.jpg", "b.jpg", "c.jpg"]).unwrap();
        (labels, boxes)
    };
    let (labels, boxes) = opened(&[], &[]);
    // The data are half as large as the file says.
    let first = boxes[0].as_ref().unwrap().of(100, 50);
    assert_eq!(first[0], Truth { corners: [10.0, 5.0, 30.0, 20.0], class: 2, area: 175.0, crowd: false });
    assert_eq!((first[1].class, first[1].crowd, first[1].area), (0, true, 25.0));
    assert_eq!((boxes[1].as_ref().unwrap().of(5, 5), boxes[2].as_ref()), (vec![], None));
    assert_eq!(labels.names[&2], "dog");
    assert_eq!(boxes[..2].iter().flatten().map(|picture| picture.id).collect::<Vec<_>>(), [Some(9), Some(10)]);
    assert!(labels.notes[0].starts_with("an annotation has the id 0"), "{:?}", labels.notes);
    assert!(labels.notes[1].starts_with("1 annotations belong to no image"), "{:?}", labels.notes);
    assert_eq!(labels.labelled_classes(), LabelledClasses { last: Some(2), places: Some((3, 18)) });
    // By the names of the classes, and by ids that were given.
    let (_, boxes) = opened(&[(0, "dog"), (1, "bus"), (2, "car")], &[]);
    assert_eq!(boxes[0].as_ref().unwrap().boxes[0].class, 0);
    let (labels, boxes) = opened(&[], &[3, 18]);
    assert_eq!((boxes[0].as_ref().unwrap().boxes[0].class, labels.names.len()), (1, 2));
    assert!(open(&path, &BTreeMap::new(), &[999]).is_err());
}

#[test]
fn categories_go_by_the_names_of_those_that_have_boxes() {
    let coco = |categories: &str, boxes: &str| {
        let text = format!(
            r#"{{"images": [{{"id": 1, "file_name": "a.jpg"}}], "categories": [{categories}],
                "annotations": [{{"id": 1, "image_id": 1, "category_id": 2{boxes}}}]}}"#
        );
        let folder = folder(&[("instances.json", &text)]);
        let classes = BTreeMap::from([(0, "car".to_owned()), (1, "dog".to_owned())]);
        let mut labels = open(&folder.path().join("instances.json"), &classes, &[]).unwrap().unwrap();
        let found = labels.assign(&["a.jpg"]).unwrap().remove(0).unwrap();
        (found.of(9, 9).first().map(|truth| truth.class), labels.notes)
    };
    let bbox = r#", "bbox": [1, 1, 2, 2]"#;
    // A group that no box has stands first, and letters differ.
    let group = r#"{"id": 0, "name": "things"}, {"id": 1, "name": "car"}, {"id": 2, "name": "Dog "}"#;
    assert_eq!(coco(group, bbox), (Some(1), vec![]));
    let (class, notes) = coco(r#"{"id": 2, "name": "wolf"}"#, bbox);
    assert_eq!(class, Some(0));
    assert!(
        notes[0].starts_with("the category `wolf` is not one of the classes by name: the first class is taken"),
        "{notes:?}"
    );
    let (_, notes) = coco("", bbox);
    assert!(notes[0].starts_with("category 2 has no name: "), "{notes:?}");
    let (class, notes) = coco(group, "");
    assert_eq!(class, None);
    assert!(notes[0].starts_with("no annotation of the label file has a box"), "{notes:?}");
    assert_eq!(notes[1], "1 annotations have no box and are left out");
}

#[test]
fn sizes_of_another_form_do_not_move_boxes() {
    let truth = Truth { corners: [20.0, 10.0, 60.0, 40.0], class: 0, area: 1200.0, crowd: false };
    let sides =
        |w: f64, h: f64| PictureBoxes { sides: Some([w, h]), boxes: vec![truth], id: None }.of(200, 100)[0].corners;
    assert_eq!(sides(400.0, 200.0), [10.0, 5.0, 30.0, 20.0]);
    assert_eq!(sides(100.0, 200.0), truth.corners);
}

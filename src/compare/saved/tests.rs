//! Saved outputs are written, read back, and refused.

use std::{fs::File, io::Write};

use super::*;
use crate::{
    npz::{start_array, stored},
    tensor::{ElementType, Values},
};

fn outputs(start: i64, count: usize) -> TensorMap {
    let ids = (start..start + count as i64).flat_map(|i| [i, -i]).collect();
    let floats = (start..start + count as i64).map(|i| half::bf16::from_f32(i as f32)).collect();
    TensorMap::from([
        ("/fc/out:0".to_owned(), Tensor::new(vec![count, 2], Values::I64(ids)).unwrap()),
        ("a".to_owned(), Tensor::new(vec![count], Values::Bf16(floats)).unwrap()),
    ])
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn outputs_come_back_by_sample_name_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.npz");
    let mut writer = OutputsWriter::new(&names(&["a", "/fc/out:0"])).unwrap();
    writer.push(&["x.jpg", "y.jpg"], &outputs(0, 2)).unwrap();
    writer.push(&["z.jpg"], &outputs(2, 1)).unwrap();
    writer.finish(&path).unwrap();
    let saved = SavedOutputs::open(&path).unwrap();
    assert_eq!((saved.outputs(), saved.len()), (names(&["a", "/fc/out:0"]), 3));
    let batch = saved.batch(&[2, 1], &["z.jpg", "y.jpg"]).unwrap();
    assert_eq!(batch["/fc/out:0"], Tensor::new(vec![2, 2], Values::I64(vec![2, -2, 1, -1])).unwrap());
    assert_eq!(batch["a"], Tensor::from_f32(vec![2], vec![2.0, 1.0]).unwrap());
    let error = saved.batch(&[0], &["q.jpg"]).unwrap_err().to_string();
    assert!(error.ends_with("reference.npz: it holds no outputs of sample q.jpg"), "{error}");
}

fn part<'a>(ids: &'a [String], inputs: &'a TensorMap) -> Part<'a> {
    Part { first: 0, indices: &[0, 1], ids, labels: &[], masks: &[], scenes: &[], inputs, copies: 1 }
}

#[test]
fn outputs_of_other_data_under_the_same_names_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.npz");
    let ids = names(&["0", "1"]);
    let inputs = |values: Vec<f32>| TensorMap::from([("x".to_owned(), Tensor::from_f32(vec![2, 2], values).unwrap())]);
    let mut writer = OutputsWriter::new(&names(&["a"])).unwrap();
    let given = inputs(vec![1.0, 2.0, 3.0, 4.0]);
    writer.push_part(&part(&ids, &given), &outputs(0, 2)).unwrap();
    writer.finish(&path).unwrap();
    let saved = SavedOutputs::open(&path).unwrap();
    saved.check_inputs(&part(&ids, &given)).unwrap();
    // Another batch changes nothing.
    let second = TensorMap::from([("x".to_owned(), Tensor::from_f32(vec![1, 2], vec![3.0, 4.0]).unwrap())]);
    saved.check_inputs(&part(&ids[1..], &second)).unwrap();
    let error = saved.check_inputs(&part(&ids, &inputs(vec![1.0, 2.0, 3.0, 5.0]))).unwrap_err().to_string();
    assert!(error.contains("outputs of sample 1 are of other data"), "{error}");
}

#[test]
fn foreign_files_go_by_position() {
    let folder = tempfile::tempdir().unwrap();
    let save = |entries: &[(&str, usize)], samples: Option<&str>| {
        let path = folder.path().join("foreign.npz");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        for &(name, rows) in entries {
            start_array(&mut archive, name, ElementType::U8, &[rows]).unwrap();
            archive.write_all(&(0..rows as u8).collect::<Vec<_>>()).unwrap();
        }
        if let Some(samples) = samples {
            archive.start_file(SAMPLES, stored()).unwrap();
            archive.write_all(samples.as_bytes()).unwrap();
        }
        archive.finish().unwrap();
        SavedOutputs::open(&path).map_err(|error| error.to_string())
    };
    let saved = save(&[("p", 3)], None).unwrap();
    assert_eq!(*saved.batch(&[2, 0], &["c", "a"]).unwrap()["p"].values(), Values::U8(vec![2, 0]));
    assert!(saved.batch(&[2, 3], &["c", "d"]).unwrap_err().to_string().contains("no outputs of sample d"));
    assert!(saved.holds(2, "c") && !saved.holds(3, "d"));
    assert!(saved.taken_for(3).unwrap().unwrap().contains("its rows are taken for those of the data, in order"));
    assert!(saved.taken_for(4).unwrap().unwrap().contains("3 rows are taken for the first 3 of the 4 samples"));
    assert!(saved.taken_for(2).unwrap_err().to_string().contains("it has 3 rows, and the data 2 samples"));
    assert!(save(&[("p", 3), ("q", 2)], None).unwrap_err().contains("`p` has 3 rows and `q` has 2"));
    assert!(save(&[("p", 2)], Some(r#"["a", "a"]"#)).unwrap_err().contains("each of the 2 samples once"));
    assert!(save(&[("p", 2)], Some("[")).unwrap_err().contains("samples.json: EOF"));
}

#[test]
fn a_call_whose_outputs_differ_in_rows_is_one_sample() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = r#"[{"name": "boxes", "dimensions": "2x1", "values": [1, 2]}, {"name": "count", "dimensions": "", "values": [2]}]"#;
    std::fs::write(file.path(), text).unwrap();
    let saved = SavedOutputs::open(file.path()).unwrap();
    assert_eq!(saved.len(), 1);
    let outputs = saved.batch(&[0], &["a"]).unwrap();
    assert_eq!((outputs["boxes"].shape(), outputs["count"].shape()), (&[2, 1][..], &[][..]));
    assert!(saved.taken_for(3).unwrap().unwrap().contains("1 calls are taken for the first 1 of the 3"));
    assert!(saved.batch(&[0, 0], &["a", "a"]).unwrap_err().to_string().contains("use --batch 1"));
}

#[test]
fn shapes_that_change_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changing.npz");
    let tensor = |shape: &[usize]| {
        let values = (0..shape.iter().product::<usize>()).map(|i| i as f32 + shape.len() as f32).collect();
        Tensor::from_f32(shape.to_vec(), values).unwrap()
    };
    let given = |shape: &[usize]| {
        TensorMap::from([("/fc/out:0".to_owned(), tensor(shape)), ("b".to_owned(), tensor(&[shape[0]]))])
    };
    let mut writer = OutputsWriter::new(&names(&["b", "/fc/out:0"])).unwrap();
    writer.push(&["0", "1"], &given(&[2, 3, 4])).unwrap();
    writer.push(&["2"], &given(&[1, 3, 4])).unwrap();
    writer.push(&["3"], &given(&[1, 5, 0])).unwrap();
    writer.push(&["4"], &given(&[1, 6])).unwrap();
    writer.finish(&path).unwrap();
    let saved = SavedOutputs::open(&path).unwrap();
    assert_eq!((saved.outputs(), saved.len()), (names(&["b", "/fc/out:0"]), 5));
    assert_eq!(saved.infos()[1].shape, [None, None, None]);
    for (row, shape) in [(0, &[1, 3, 4][..]), (3, &[1, 5, 0]), (4, &[1, 6])] {
        assert_eq!(saved.batch(&[row], &[&row.to_string()]).unwrap()["/fc/out:0"], tensor(shape), "{row}");
    }
    assert_eq!(saved.batch(&[2, 1], &["2", "1"]).unwrap()["/fc/out:0"].shape(), [2, 3, 4]);
    let error = saved.batch(&[2, 3], &["2", "3"]).unwrap_err().to_string();
    assert!(error.contains("[3, 4] for sample 2 and [5, 0] for sample 3"), "{error}");
    let all: Vec<_> = saved.all().unwrap().iter().map(|block| block["/fc/out:0"].shape().to_vec()).collect();
    assert_eq!(all, [vec![3, 3, 4], vec![1, 5, 0], vec![1, 6]]);
}

#[test]
fn blocks_that_do_not_follow_each_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let read = |entries: &[&str], count: &str| {
        let path = folder.path().join("blocks.npz");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        for name in entries {
            start_array(&mut archive, name, ElementType::U8, &[1]).unwrap();
            archive.write_all(&[7]).unwrap();
        }
        archive.start_file(BLOCKS, stored()).unwrap();
        archive.write_all(count.as_bytes()).unwrap();
        archive.finish().unwrap();
        SavedOutputs::open(&path).map(|saved| saved.len()).map_err(|error| error.to_string())
    };
    assert_eq!(read(&["00000000/a", "00000001/a"], "2"), Ok(2));
    for (entries, count, why) in [
        (&["00000000/a", "00000001/a"][..], "3", "there are 3 blocks, and there are 2"),
        (&["00000000/a", "00000002/a"], "2", "`00000002/a` belongs to no block that could follow"),
        (&["00000000/a", "a"], "2", "`a` belongs to no block"),
        (&["00000000/a", "00000001/b"], "2", "block 1 has other outputs"),
        (&["00000000/a", "00000001/a"], "[", "blocks.json: invalid type"),
    ] {
        let error = read(entries, count).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn what_does_not_fit_together_is_not_saved() {
    let mut writer = OutputsWriter::new(&names(&["a"])).unwrap();
    writer.push(&["0"], &outputs(0, 1)).unwrap();
    let halves = Tensor::new(vec![1], Values::F16(vec![half::f16::ONE])).unwrap();
    let halves = TensorMap::from([("a".to_owned(), halves)]);
    assert!(
        writer.push(&["1"], &halves).unwrap_err().to_string().contains("samples differ in type (bfloat16 and float16)")
    );
    let other = TensorMap::from([("a".to_owned(), Tensor::from_f32(vec![1, 2], vec![0.0; 2]).unwrap())]);
    assert!(writer.push(&["1", "2"], &other).unwrap_err().to_string().contains("[1, 2] is not a batch of 2 samples"));
    assert!(
        writer.push(&["1"], &TensorMap::new()).unwrap_err().to_string().contains("`a` cannot be saved: it is missing")
    );
}

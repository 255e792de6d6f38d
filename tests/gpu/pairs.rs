//! Sums of differences and best classes against the CPU's.

use trtcalib::{
    backend::cuda::{Device, DeviceView, Pair, PairComparer},
    compare::PairSums,
    tensor::{ElementType, Tensor},
};

use super::values::{KINDS, Random, TYPES, kind, on_device, tensor};

fn total(pieces: &[trtcalib::backend::cuda::PieceSums]) -> PairSums {
    let mut total = PairSums::default();
    for piece in pieces {
        total.add(&PairSums::of_piece(piece));
    }
    total
}

fn close(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= 1e-11 * a.abs().max(b.abs())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn sums_are_those_of_the_cpu_for_every_kind_and_pair_of_types() {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let comparer = PairComparer::new(&device, &stream).unwrap();
    let count = 300_003;
    for (seed, name) in KINDS.iter().enumerate() {
        let mut reference = kind(name, count, seed as u64);
        let mut target: Vec<f32> = reference.iter().zip(kind("normal", count, 99)).map(|(r, e)| r + e * 1e-2).collect();
        for (i, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
            reference[1000 + i] = bad;
            target[1001 + i] = bad;
        }
        for types in TYPES.iter().flat_map(|&a| TYPES.map(|b| (a, b))) {
            let (r, t) = (tensor(&reference, &[count], types.0), tensor(&target, &[count], types.1));
            let expected = PairSums::of(r.view().values, t.view().values, 1.5);
            let (rb, tb) = (on_device(&stream, &r, 0), on_device(&stream, &t, 0));
            let view = |buffer, tensor: &'static Tensor| {
                DeviceView::of_bytes(buffer, &stream, tensor.shape(), tensor.element_type()).unwrap()
            };
            let (r, t): (&'static Tensor, &'static Tensor) = (Box::leak(Box::new(r)), Box::leak(Box::new(t)));
            let pair = Pair { reference: view(&rb, r), target: view(&tb, t), threshold: 1.5 };
            let found = total(&comparer.sum(&[pair]).unwrap()[0]);
            assert_eq!(
                (found.count, found.beyond, found.non_finite, found.error_max.to_bits()),
                (expected.count, expected.beyond, expected.non_finite, expected.error_max.to_bits()),
                "{name} {types:?}"
            );
            for (a, b) in [
                (found.reference_squares, expected.reference_squares),
                (found.target_squares, expected.target_squares),
                (found.error_squares, expected.error_squares),
                (found.error_sum, expected.error_sum),
            ] {
                assert!(close(a, b), "{name} {types:?}: {a} is not {b}");
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_pair_has_the_same_sums_in_any_company() {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let comparer = PairComparer::new(&device, &stream).unwrap();
    let (rows, columns) = (5, 300_001);
    let r = tensor(&kind("normal", rows * columns, 1), &[rows, columns], ElementType::F32);
    let t = tensor(&kind("clipped", rows * columns, 2), &[rows, columns], ElementType::F32);
    let (rb, tb) = (on_device(&stream, &r, 0), on_device(&stream, &t, 0));
    let reference = DeviceView::of_bytes(&rb, &stream, r.shape(), ElementType::F32).unwrap();
    let target = DeviceView::of_bytes(&tb, &stream, t.shape(), ElementType::F32).unwrap();
    let pair = |row| Pair {
        reference: reference.row(row, rows).unwrap(),
        target: target.row(row, rows).unwrap(),
        threshold: f32::INFINITY,
    };
    let together = comparer.sum(&(0..rows).map(pair).collect::<Vec<_>>()).unwrap();
    for (row, sums) in together.iter().enumerate() {
        assert_eq!(sums.len(), 2);
        assert_eq!(&comparer.sum(&[pair(row)]).unwrap()[0], sums);
    }
    assert!(comparer.sum(&[Pair { reference, target: target.row(0, rows).unwrap(), threshold: 0.0 }]).is_err());
    assert!(comparer.sum(&[]).unwrap().is_empty() && reference.row(5, 5).is_none() && reference.row(0, 4).is_none());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn best_classes_break_ties_by_index_and_never_choose_nan() {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let comparer = PairComparer::new(&device, &stream).unwrap();
    let (rows, classes) = (33, 1000);
    let mut random = Random(3);
    let mut values: Vec<f32> = (0..rows * classes).map(|_| (random.word() % 97) as f32 - 48.0).collect();
    for i in (0..values.len()).step_by(13) {
        values[i] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0][i % 4];
    }
    values[..classes - 2].fill(f32::NAN);
    for element_type in TYPES {
        let scores = tensor(&values, &[rows, classes], element_type);
        let buffer = on_device(&stream, &scores, 0);
        let view = DeviceView::of_bytes(&buffer, &stream, scores.shape(), element_type).unwrap();
        let views: Vec<_> = (0..rows).map(|row| view.row(row, rows).unwrap()).collect();
        for k in [1, 5, 20] {
            let found = comparer.top_k(&views, k).unwrap();
            for (row, best) in scores.to_f32().chunks(classes).zip(found) {
                let mut order: Vec<u32> = (0..classes as u32).filter(|&i| !row[i as usize].is_nan()).collect();
                order.sort_by(|&a, &b| row[b as usize].partial_cmp(&row[a as usize]).unwrap());
                order.truncate(k);
                let scores: Vec<(u32, f64)> = order.iter().map(|&i| (i, f64::from(row[i as usize]))).collect();
                assert_eq!(best, scores);
            }
        }
    }
}

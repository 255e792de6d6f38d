//! Against pycocotools (`scripts/make_coco_fixtures.py`), and weights against pictures that are there twice.

use super::*;

#[derive(Deserialize)]
struct Case {
    name: String,
    pictures: Vec<Picture>,
    figures: [Option<f64>; 12],
    by_class: Vec<(u32, f64, f64)>,
}

#[derive(Deserialize)]
struct Picture {
    found: Vec<(f32, f32, f32, f32, f32, u32)>,
    truths: Vec<(f32, f32, f32, f32, u32, f64, bool)>,
}

impl Picture {
    fn lists(&self) -> (Vec<Detection>, Vec<Truth>) {
        let found =
            self.found.iter().map(|&(a, b, c, d, score, class)| Detection { corners: [a, b, c, d], score, class });
        let truths = self.truths.iter();
        let truths =
            truths.map(|&(a, b, c, d, class, area, crowd)| Truth { corners: [a, b, c, d], class, area, crowd });
        (found.collect(), truths.collect())
    }
}

fn cases() -> Vec<Case> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/detection/coco.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ranking<'a>(pictures: impl IntoIterator<Item = &'a Picture>) -> Ranking {
    let mut ranking = Ranking::default();
    for picture in pictures {
        let (found, truths) = picture.lists();
        ranking.push(&found, &truths);
    }
    ranking.sort();
    ranking
}

#[test]
fn figures_equal_pycocotools() {
    let cases = cases();
    assert_eq!(cases.len(), 9);
    for case in &cases {
        let ranking = ranking(&case.pictures);
        let f = ranking.figures();
        let found = [
            f.map50_95,
            f.map50,
            f.map75,
            f.map_small,
            f.map_medium,
            f.map_large,
            f.mar_1,
            f.mar_10,
            f.mar_100,
            f.mar_small,
            f.mar_medium,
            f.mar_large,
        ];
        for (index, (found, expected)) in found.iter().zip(case.figures).enumerate() {
            assert_eq!(found.is_some(), expected.is_some(), "{}, figure {index}", case.name);
            let difference = (found.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs();
            assert!(difference < 1e-6, "{}, figure {index}: {found:?} {expected:?}", case.name);
        }
        let by_class = ranking.by_class();
        assert_eq!(by_class.len(), case.by_class.len(), "{}", case.name);
        for (found, &(class, all, half)) in by_class.iter().zip(&case.by_class) {
            assert_eq!(found.class, class);
            assert!((found.map50_95 - all).abs() < 1e-6 && (found.map50 - half).abs() < 1e-6, "{}", case.name);
        }
    }
}

#[test]
fn a_weight_of_two_is_the_picture_twice() {
    // Equal scores of the copies may stand in another order, which tells only where right and wrong boxes tie.
    let case = cases().swap_remove(0);
    let weights: Vec<u32> = (0..case.pictures.len() as u32).map(|index| index % 3).collect();
    let copies = case.pictures.iter().zip(&weights).flat_map(|(p, &weight)| std::iter::repeat_n(p, weight as usize));
    let (weighted, copied) = (ranking(&case.pictures).weighted_maps(&weights).unwrap(), ranking(copies).figures());
    for (weighted, copied) in weighted.into_iter().zip([copied.map50_95, copied.map50]) {
        assert!((weighted - copied.unwrap()).abs() < 1e-9, "{weighted:?} {copied:?}");
    }
    assert_eq!(ranking(&case.pictures).weighted_maps(&vec![0; case.pictures.len()]), None);
}

#[test]
fn the_curve_counts_by_hand() {
    let at = |x: f32| [x, 0.0, x + 10.0, 10.0];
    let found =
        [(0.9, 0.0), (0.5, 100.0), (0.255, 20.0)].map(|(score, x)| Detection { corners: at(x), score, class: 0 });
    let truths = [0.0, 20.0, 40.0].map(|x| Truth { corners: at(x), class: 0, area: 100.0, crowd: false });
    let mut ranking = Ranking::default();
    ranking.push(&found, &truths);
    ranking.sort();
    let curve = ranking.curve();
    assert_eq!((curve.precision[91], curve.recall[91], curve.f1[91]), (1.0, 0.0, 0.0));
    assert_eq!((curve.precision[50], curve.recall[50]), (0.5, 1.0 / 3.0));
    assert_eq!((curve.precision[25], curve.recall[25]), (2.0 / 3.0, 2.0 / 3.0));
    assert_eq!(curve.precision[26], 0.5);
    let [confidence, precision, recall, f1] = curve.best().unwrap();
    assert_eq!((confidence, precision, recall), (0.0, 2.0 / 3.0, 2.0 / 3.0));
    assert!((f1 - 2.0 / 3.0).abs() < 1e-12);
}

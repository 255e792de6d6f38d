//! Label masks: PNG files whose pixels are class indices, gray or by palette, in a folder or named by a list.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{
    DatasetError, ending,
    labels::{read_text, rows, shown, stem, without_ending},
    letterbox::Letterbox,
    preprocess::Preprocess,
    resample::{Interpolation, RgbImage},
};
use crate::tensor::{Tensor, Values};

/// Masks with more pixels are refused before they are decoded.
const MAX_PIXELS: u64 = super::MAX_PIXELS;
/// Class of pixels that a crop adds around a small picture: nothing is known there.
const BEYOND: u16 = 255;

/// Mask files by the samples they belong to.
#[derive(Debug)]
pub(super) struct Masks {
    path: PathBuf,
    by_name: BTreeMap<String, PathBuf>,
}

impl Masks {
    /// Masks by their names within the folder `path`.
    pub(super) fn new(path: &Path, files: Vec<(String, PathBuf)>) -> Self {
        Self { path: path.to_owned(), by_name: files.into_iter().collect() }
    }

    /// The masks of a list `file,mask.png` whose paths start at the list's folder; `None` when `path` is a file of other
    /// labels. Of a list of millions only the masks of the samples `ids` take memory.
    pub(super) fn open(path: &Path, ids: &[&str]) -> Result<Option<Self>, DatasetError> {
        let mut by_name = BTreeMap::new();
        let folder = path.parent().unwrap_or(Path::new(""));
        let text = read_text(path)?;
        let wanted: BTreeSet<&str> = ids.iter().map(|id| stem(id)).collect();
        for row in rows(&text, path) {
            let (number, row) = row?;
            let [name, mask, ..] = row.as_slice() else { return Ok(None) };
            if ending(Path::new(mask)) == "png" {
                let name = name.replace('\\', "/");
                // One that belongs to no sample stands for all of them in the error.
                if by_name.is_empty() || wanted.contains(stem(&name)) {
                    by_name.insert(name, folder.join(mask));
                }
            } else if !by_name.is_empty() {
                let reason = format!("line {number}: `{}` is not a PNG mask, as the lines before have", shown(mask));
                return Err(DatasetError::Labels { path: path.to_owned(), reason });
            } else if number > 1 {
                return Ok(None);
            }
        }
        if by_name.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { path: path.to_owned(), by_name }))
    }

    /// The mask of every sample, by its name without ending, else by that of the file alone. None at all is an error.
    pub(super) fn assign(&self, ids: &[&str]) -> Result<Vec<Option<PathBuf>>, DatasetError> {
        let table = |key: fn(&str) -> &str| {
            let mut table: BTreeMap<&str, Option<&PathBuf>> = BTreeMap::new();
            for (name, path) in &self.by_name {
                // A name that two masks share says nothing.
                table.entry(key(name)).and_modify(|found| *found = None).or_insert(Some(path));
            }
            table
        };
        let (by_name, by_file) = (table(without_ending), table(stem));
        let named = |id: &str| by_name.get(without_ending(id)).or_else(|| by_file.get(stem(id))).copied().flatten();
        let find = |id: &&str| named(id).cloned();
        let found: Vec<Option<PathBuf>> = ids.iter().map(find).collect();
        if found.iter().all(Option::is_none) {
            let (mask, sample) = (self.by_name.keys().next().map_or("", String::as_str), ids.first().unwrap_or(&""));
            let reason = format!(
                "no mask has the name of a sample: there is `{}`, and the data has `{}`; the columns of a list are the \
                 sample, then its mask or class",
                shown(mask),
                shown(sample)
            );
            return Err(DatasetError::Labels { path: self.path.clone(), reason });
        }
        Ok(found)
    }
}

/// The class indices of a mask file, shaped as `preprocess` shapes its picture but with the nearest pixels: `[H, W]`.
/// The error is a reason in words.
pub(super) fn read(bytes: &[u8], preprocess: &Preprocess) -> Result<Tensor, String> {
    let (width, height, classes) = decode(bytes)?;
    // The low and the high byte of a class stand in two channels; the third tells pixels from what a crop adds.
    let data = classes
        .iter()
        .flat_map(|class| {
            let [low, high] = class.to_le_bytes();
            [low, high, 1]
        })
        .collect();
    let letterbox = preprocess.letterbox.map(|letterbox| Letterbox { pad: 0, ..letterbox });
    let geometry = Preprocess { interpolation: Interpolation::Nearest, letterbox, ..preprocess.clone() };
    let shaped = geometry.shape_image(&RgbImage { width, height, data })?;
    let class = |pixel: &[u8; 3]| if pixel[2] == 1 { u16::from_le_bytes([pixel[0], pixel[1]]) } else { BEYOND };
    let values = shaped.data.as_chunks::<3>().0.iter().map(|pixel| i64::from(class(pixel))).collect();
    Tensor::new(vec![shaped.height, shaped.width], Values::I64(values)).map_err(|error| error.to_string())
}

/// Width, height and class of every pixel.
fn decode(bytes: &[u8]) -> Result<(usize, usize, Vec<u16>), String> {
    let failed = |error: png::DecodingError| format!("the mask cannot be decoded: {error}");
    let decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    let mut reader = decoder.read_info().map_err(failed)?;
    let info = reader.info();
    let (width, height, depth) = (info.width as usize, info.height as usize, info.bit_depth);
    if u64::from(info.width) * u64::from(info.height) > MAX_PIXELS {
        return Err(format!("a mask of {width}×{height} pixels is more than the limit of {MAX_PIXELS}"));
    }
    if !matches!(info.color_type, png::ColorType::Grayscale | png::ColorType::Indexed) {
        return Err("the mask holds colours, not class indices; write it as gray or with a palette".to_owned());
    }
    let mut rows = vec![0; reader.output_buffer_size().ok_or("the mask is too large")?];
    let frame = reader.next_frame(&mut rows).map_err(failed)?;
    let bits = depth as usize;
    let classes = rows.chunks_exact(frame.line_size.max(1)).take(height).flat_map(|row| {
        (0..width).map(move |x| match bits {
            16 => u16::from_be_bytes([row[2 * x], row[2 * x + 1]]),
            8 => u16::from(row[x]),
            // Several pixels in a byte, the first in the highest bits.
            bits => u16::from(row[x * bits / 8] >> (8 - bits - x * bits % 8)) & ((1 << bits) - 1),
        })
    });
    Ok((width, height, classes.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(width: u32, height: u32, color: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == png::ColorType::Indexed {
            let colours = 0..1u16 << depth as u8;
            encoder.set_palette(colours.flat_map(|i| [i as u8, 255 - i as u8, 7]).collect::<Vec<u8>>());
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        bytes
    }

    #[test]
    fn every_depth_of_gray_and_palette_gives_its_indices() {
        use png::{BitDepth::*, ColorType::*};
        let classes = |bytes: &[u8]| decode(bytes).unwrap().2;
        assert_eq!(classes(&encode(3, 2, Grayscale, Eight, &[0, 1, 255, 7, 20, 3])), [0, 1, 255, 7, 20, 3]);
        assert_eq!(classes(&encode(3, 2, Indexed, Eight, &[0, 1, 255, 7, 20, 3])), [0, 1, 255, 7, 20, 3]);
        assert_eq!(classes(&encode(2, 1, Grayscale, Sixteen, &[1, 2, 0, 5])), [258, 5]);
        assert_eq!(classes(&encode(3, 2, Indexed, Four, &[0x12, 0x30, 0xf0, 0x40])), [1, 2, 3, 15, 0, 4]);
        assert_eq!(classes(&encode(5, 1, Grayscale, Two, &[0b00_01_10_11, 0b10_00_00_00])), [0, 1, 2, 3, 2]);
        assert_eq!(classes(&encode(9, 1, Indexed, One, &[0b1010_0001, 0b1000_0000])), [1, 0, 1, 0, 0, 0, 0, 1, 1]);
        let colours = encode(1, 1, Rgb, Eight, &[1, 2, 3]);
        assert!(decode(&colours).unwrap_err().contains("colours"));
        assert!(decode(&colours[..20]).unwrap_err().contains("cannot be decoded"));
    }

    #[test]
    fn masks_take_the_same_way_as_their_pictures() {
        let bytes = encode(4, 2, png::ColorType::Indexed, png::BitDepth::Eight, &[0, 1, 2, 3, 4, 5, 6, 7]);
        let exact = |height, width| Preprocess {
            resize: Some(super::super::Extent::Exact([height, width])),
            interpolation: Interpolation::Bilinear,
            ..Preprocess::default()
        };
        let shaped = |preprocess: &Preprocess| {
            let mask = read(&bytes, preprocess).unwrap();
            (mask.shape().to_vec(), mask.values().view().to_f64().into_owned())
        };
        assert_eq!(shaped(&exact(2, 2)), (vec![2, 2], vec![1.0, 3.0, 5.0, 7.0]));
        let cropped = Preprocess { crop: Some(super::super::Extent::Exact([2, 2])), ..Preprocess::default() };
        assert_eq!(shaped(&cropped), (vec![2, 2], vec![1.0, 2.0, 5.0, 6.0]));
        let padded = Preprocess { crop: Some(super::super::Extent::Exact([2, 6])), ..Preprocess::default() };
        assert_eq!(shaped(&padded).1[..6], [255.0, 0.0, 1.0, 2.0, 3.0, 255.0]);
    }

    #[test]
    fn masks_are_found_by_name_in_folders_and_lists() {
        let folder = tempfile::tempdir().unwrap();
        let masks = folder.path().join("masks");
        std::fs::create_dir(&masks).unwrap();
        for name in ["a.png", "b.png"] {
            std::fs::write(masks.join(name), b"").unwrap();
        }
        let of = |path: &Path, ids: &[&str]| Masks::open(path, ids).unwrap().unwrap().assign(ids);
        let files = ["a.png", "b.png"].map(|name| (name.to_owned(), masks.join(name)));
        let found = Masks::new(&masks, files.into()).assign(&["a.jpg", "city/b.jpg", "c.jpg"]).unwrap();
        assert_eq!(found, [Some(masks.join("a.png")), Some(masks.join("b.png")), None]);
        let list = folder.path().join("list.csv");
        std::fs::write(&list, "file,mask\nz_left.jpg,masks/z.png\na_left.jpg,masks/a.png\nb_left.jpg,b.png").unwrap();
        let found = of(&list, &["x/a_left.jpg"]).unwrap();
        assert_eq!(found, [Some(folder.path().join("masks/a.png"))]);
        let kept = Masks::open(&list, &["a_left.jpg"]).unwrap().unwrap().by_name;
        assert_eq!(kept.len(), 2, "the first, and that of a sample");
        let error = of(&list, &["z.jpg"]).unwrap_err().to_string();
        assert!(error.contains("`z_left.jpg`") && error.contains("`z.jpg`"), "{error}");
        std::fs::write(&list, "file,label\na.jpg,3\nb.jpg,4\n").unwrap();
        assert!(Masks::open(&list, &[]).unwrap().is_none());
        std::fs::write(&list, "a.jpg,a.png\nb.jpg,4\n").unwrap();
        assert!(Masks::open(&list, &[]).unwrap_err().to_string().contains("line 2: `4`"));
    }
}

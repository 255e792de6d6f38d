//! Image files to 8-bit RGB: JPEG, PNG, WebP and BMP.
//!
//! The rules are Pillow's `Image.open(file).convert("RGB")` after `ImageOps.exif_transpose`: an alpha channel is
//! dropped, palettes are looked up, gray is repeated, of 16-bit values the upper 8 bits count, of an animation the
//! first frame. (16-bit gray PNG files are the exception: Pillow clips them at 255, which leaves nearly all of them
//! white; here their upper 8 bits count as well.) With the cargo feature `turbojpeg` JPEG files are decoded by libjpeg-turbo, to the same pixels as in
//! Pillow and OpenCV; the default decoder differs from it by a few levels where chroma is subsampled.

use std::{borrow::Cow, io::Cursor};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, metadata::Orientation};

use super::{jpeg, resample::RgbImage};

/// Images with more pixels are refused before they are decoded (a guard against decompression bombs).
pub const MAX_PIXELS: u64 = 178_956_970;

/// An image that decodes to more than this ...
const PLAUSIBLE_BYTES: u64 = 64 << 20;
/// ... and more than this many times its file is refused: no picture of anything packs so well.
const PLAUSIBLE_RATIO: u64 = 32_768;

/// Decodes a whole file; the error is a reason in words.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let stripped = without_profiles(bytes);
    let mut reader =
        ImageReader::new(Cursor::new(&*stripped)).with_guessed_format().map_err(|error| error.to_string())?;
    let format = reader.format().ok_or("this is not a JPEG, PNG, WebP or BMP image")?;
    if format == ImageFormat::Jpeg {
        jpeg::check_complete(bytes)?;
    }
    reader.no_limits();
    let mut decoder = reader.into_decoder().map_err(|error| reason(&error))?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err("the image has no pixels".to_owned());
    }
    if pixels > MAX_PIXELS {
        return Err(format!("{width}×{height} pixels are more than the limit of {MAX_PIXELS}"));
    }
    if decoder.total_bytes() > PLAUSIBLE_BYTES && decoder.total_bytes() / PLAUSIBLE_RATIO > bytes.len() as u64 {
        return Err(format!("{} bytes cannot hold {width}×{height} pixels; refused as a bomb", bytes.len()));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = match format {
        #[cfg(feature = "turbojpeg")]
        ImageFormat::Jpeg => jpeg::decode_turbo(bytes)?,
        _ => DynamicImage::from_decoder(decoder).map_err(|error| reason(&error))?,
    };
    image.apply_orientation(orientation);
    Ok(to_rgb(image))
}

/// A PNG file without the packed profiles and texts that nothing here uses: a few kilobytes of them unpack to gigabytes.
fn without_profiles(bytes: &[u8]) -> Cow<'_, [u8]> {
    const SIGNATURE: usize = 8;
    let chunk = |at: usize| {
        let header = bytes.get(at..at + 8)?;
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        Some((&header[4..8], at.checked_add(length)?.checked_add(12)?))
    };
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Cow::Borrowed(bytes);
    }
    let (mut kept, mut from, mut at) = (Vec::new(), 0, SIGNATURE);
    while let Some((kind, end)) = chunk(at).filter(|&(_, end)| end <= bytes.len()) {
        if [b"iCCP", b"zTXt", b"iTXt", b"tEXt"].iter().any(|packed| *packed == kind) {
            kept.extend_from_slice(&bytes[from..at]);
            from = end;
        }
        at = end;
    }
    if from == 0 {
        return Cow::Borrowed(bytes);
    }
    kept.extend_from_slice(&bytes[from..]);
    Cow::Owned(kept)
}

fn reason(error: &image::ImageError) -> String {
    format!("it cannot be decoded: {error}")
}

/// The pixels stay where they are if they can: large pictures take hundreds of megabytes.
fn to_rgb(image: DynamicImage) -> RgbImage {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let repeat = |gray: &[u8], step: usize| gray.iter().step_by(step).flat_map(|&v| [v; 3]).collect();
    let high = |value: &u16| (value >> 8) as u8;
    let data = match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageRgba8(image) => {
            let mut data = image.into_raw();
            for pixel in 0..data.len() / 4 {
                data.copy_within(4 * pixel..4 * pixel + 3, 3 * pixel);
            }
            data.truncate(width * height * 3);
            data
        }
        DynamicImage::ImageLuma8(image) => repeat(image.as_raw(), 1),
        DynamicImage::ImageLumaA8(image) => repeat(image.as_raw(), 2),
        DynamicImage::ImageLuma16(image) => image.as_raw().iter().flat_map(|v| [high(v); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => image.as_raw().iter().step_by(2).flat_map(|v| [high(v); 3]).collect(),
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(high).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.as_raw().chunks_exact(4).flat_map(|rgba| [high(&rgba[0]), high(&rgba[1]), high(&rgba[2])]).collect()
        }
        other => other.to_rgb8().into_raw(),
    };
    RgbImage { width, height, data }
}

#[cfg(test)]
mod tests {
    use image::{ImageBuffer, Luma, Rgba};

    use super::*;

    fn png(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn sixteen_bits_keep_the_upper_eight_and_alpha_is_dropped() {
        let gray = ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![0x12ff, 0xff00]).unwrap();
        assert_eq!(decode(&png(&gray.into())).unwrap().data, [0x12, 0x12, 0x12, 0xff, 0xff, 0xff]);
        let rgba = ImageBuffer::<Rgba<u8>, _>::from_raw(1, 1, vec![9, 8, 7, 0]).unwrap();
        assert_eq!(decode(&png(&rgba.into())).unwrap().data, [9, 8, 7]);
    }

    #[test]
    fn profiles_of_a_png_are_never_unpacked() {
        let plain = png(&DynamicImage::new_rgb8(3, 2));
        let with = |kind: &[u8], content: &[u8]| {
            let length = u32::try_from(content.len()).unwrap().to_be_bytes();
            let chunk = [&length, kind, content, &[0; 4]].concat();
            // Behind the header, which has 13 bytes.
            [&plain[..33], &chunk, &plain[33..]].concat()
        };
        assert_eq!(without_profiles(&with(b"iCCP", &[7; 100])), plain);
        assert_eq!(without_profiles(&with(b"zTXt", b"x")), plain);
        let orientation = with(b"eXIf", b"II*\0");
        assert_eq!(without_profiles(&orientation), orientation);
        let lying = [&plain[..8], &[0xff; 4], b"iCCP", &plain[8..]].concat();
        assert_eq!(without_profiles(&lying), lying);
        assert_eq!(decode(&with(b"iCCP", b"not packed at all")).unwrap().data, decode(&plain).unwrap().data);
    }

    #[test]
    fn what_is_no_image_is_said() {
        assert!(decode(b"").unwrap_err().contains("empty"));
        assert!(decode(b"hello, world").unwrap_err().contains("not a JPEG"));
        let whole = png(&DynamicImage::new_rgb8(64, 64));
        assert!(decode(&whole[..whole.len() / 2]).unwrap_err().contains("cannot be decoded"));
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        // A BMP header that declares 30,000 × 30,000 pixels and holds none.
        let mut bomb = b"BM".to_vec();
        bomb.extend(54u32.to_le_bytes());
        bomb.extend(0u32.to_le_bytes());
        bomb.extend(54u32.to_le_bytes());
        bomb.extend(40u32.to_le_bytes());
        bomb.extend(30_000i32.to_le_bytes());
        bomb.extend(30_000i32.to_le_bytes());
        bomb.extend(1u16.to_le_bytes());
        bomb.extend(24u16.to_le_bytes());
        bomb.extend([0; 24]);
        assert!(decode(&bomb).unwrap_err().contains("more than the limit"), "{:?}", decode(&bomb));
    }
}

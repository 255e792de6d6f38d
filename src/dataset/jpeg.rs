//! What the JPEG decoders leave open: noticing a file that was cut off, and exact decoding.

/// Most scans of a picture; encoders make ten or so.
const MAX_SCANS: usize = 500;

/// Walks the markers to the end of the image, so that a file that was cut off is refused.
///
/// Decoders fill what is missing with grey and call it success. Embedded thumbnails have ends of their own, hence the
/// walk from segment to segment.
///
/// Each scan is a pass over all pixels, however few bytes it has.
pub(super) fn check_complete(bytes: &[u8]) -> Result<(), String> {
    const END_OF_IMAGE: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let cut = || "the JPEG data are cut off before the end of the image".to_owned();
    let mut rest = bytes.get(2..).ok_or_else(cut)?;
    let mut scans = 0;
    loop {
        // Between segments anything but a marker is padding; within a scan it is the data. `FF 00` and the restart
        // markers belong to the data, `FF FF` fills.
        let at = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff)).ok_or_else(cut)?;
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match marker {
            END_OF_IMAGE if scans > 0 => return Ok(()),
            END_OF_IMAGE => return Err("the JPEG file holds no image data".to_owned()),
            0x01 | 0xd0..=0xd8 => {}
            _ => {
                let length = rest.first_chunk::<2>().map(|&length| usize::from(u16::from_be_bytes(length)));
                rest = length.and_then(|length| rest.get(length..)).ok_or_else(cut)?;
                scans += usize::from(marker == START_OF_SCAN);
                if scans > MAX_SCANS {
                    return Err(format!("the JPEG file has more than {MAX_SCANS} scans; refused as a bomb"));
                }
            }
        }
    }
}

/// Decodes with libjpeg-turbo's defaults (accurate integer DCT, smooth upsampling), as Pillow does.
#[cfg(feature = "turbojpeg")]
pub(super) fn decode_turbo(bytes: &[u8]) -> Result<image::DynamicImage, String> {
    use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};

    let damaged = |error: turbojpeg::Error| format!("it cannot be decoded: {error}");
    let mut decompressor = Decompressor::new().map_err(damaged)?;
    decompressor.set_scan_limit(MAX_SCANS).map_err(damaged)?;
    let header = decompressor.read_header(bytes).map_err(damaged)?;
    let format = match header.colorspace {
        Colorspace::Gray => PixelFormat::GRAY,
        Colorspace::CMYK | Colorspace::YCCK => PixelFormat::CMYK,
        _ => PixelFormat::RGB,
    };
    let (width, height) = (header.width, header.height);
    let pitch = width * format.size();
    let mut pixels = vec![0; pitch * height];
    match decompressor.decompress(bytes, Image { pixels: &mut pixels[..], width, pitch, height, format }) {
        // Stray bytes between segments cost no pixel.
        Err(turbojpeg::Error::TurboJpegError(warning)) if warning.contains("extraneous bytes") => {}
        other => other.map_err(damaged)?,
    }
    let (columns, rows) = (width as u32, height as u32);
    let image = match format {
        PixelFormat::GRAY => image::GrayImage::from_raw(columns, rows, pixels).map(image::DynamicImage::from),
        PixelFormat::CMYK => image::RgbImage::from_raw(columns, rows, inverted_cmyk(&pixels)).map(Into::into),
        _ => image::RgbImage::from_raw(columns, rows, pixels).map(Into::into),
    };
    image.ok_or_else(|| "the picture does not fit the memory".to_owned())
}

/// Inverted CMYK to RGB: each colour times black over 255, rounded.
#[cfg(feature = "turbojpeg")]
fn inverted_cmyk(pixels: &[u8]) -> Vec<u8> {
    let (pixels, _) = pixels.as_chunks::<4>();
    let product = |a: u8, b: u8| {
        let t = u32::from(a) * u32::from(b) + 128;
        ((t + (t >> 8)) >> 8) as u8
    };
    // Pillow computes k - (255 - c)·k/255, rounding the product that is taken away.
    pixels.iter().flat_map(|&[c, m, y, k]| [c, m, y].map(|ink| k - product(255 - ink, k))).collect()
}

#[cfg(test)]
mod tests {
    use super::check_complete;

    #[test]
    fn the_end_of_a_thumbnail_is_not_the_end_of_the_image() {
        let thumbnail = [0xff, 0xe1, 0x00, 0x06, 0xff, 0xda, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0x00, 0x02, 0x12, 0xff, 0x00, 0xff, 0xd0, 0x34];
        let mut file = [&[0xff, 0xd8][..], &thumbnail, &scan].concat();
        assert!(check_complete(&file).unwrap_err().contains("cut off"));
        file.extend([0xff, 0xd9]);
        assert_eq!(check_complete(&file), Ok(()));
    }

    #[test]
    fn thousands_of_scans_are_refused() {
        let scans = |count| [&[0xff, 0xd8][..], &[0xff, 0xda, 0x00, 0x02].repeat(count), &[0xff, 0xd9]].concat();
        assert_eq!(check_complete(&scans(500)), Ok(()));
        assert!(check_complete(&scans(501)).unwrap_err().contains("more than 500 scans"));
    }

    #[test]
    fn any_prefix_is_cut_off() {
        let file = [0xff, 0xd8, 0xff, 0xda, 0x00, 0x03, 0x07, 0x12, 0xff, 0xd9];
        for length in 0..file.len() {
            assert!(check_complete(&file[..length]).is_err(), "{length}");
        }
    }
}

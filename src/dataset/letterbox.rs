//! A whole picture in a frame of fixed size: resized by one factor, the rest padded, as detectors take it; and where a
//! picture lies in the model's input, so that boxes find back into the picture.

use serde::{Deserialize, Serialize};

use super::{preprocess::Extent, resample::RgbImage};

/// `[preprocess.letterbox]`: the whole picture in a frame, with its proportions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Letterbox {
    /// The frame: one side, or height and width; absent for the model's input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Extent>,
    /// Value around the picture, in every channel.
    #[serde(default = "ultralytics_pad")]
    pub pad: u8,
    /// Where the picture lies in the frame.
    #[serde(default)]
    pub place: Place,
    /// How the sides of the resized picture become whole pixels.
    #[serde(default)]
    pub rounding: SideRounding,
}

fn ultralytics_pad() -> u8 {
    114
}

/// Where a picture lies in its frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the middle; of an odd border the smaller half is left and above (Ultralytics).
    #[default]
    Centre,
    /// At the top left (YOLOX).
    TopLeft,
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "centre" | "center" => Ok(Self::Centre),
            "top-left" => Ok(Self::TopLeft),
            _ => Err(format!("`{name}` is neither centre nor top-left")),
        }
    }
}

/// How a side becomes a whole number of pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SideRounding {
    /// To the nearest, half to even (Ultralytics).
    #[default]
    Nearest,
    /// Down (YOLOX).
    Down,
}

/// Where a picture lies in the model's input: a point `(x, y)` of the picture is at `scale · (x, y) + offset`, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// Width and height of the picture.
    pub picture: [usize; 2],
    /// Width and height of the model's input.
    pub input: [usize; 2],
    /// Factors along x and y.
    pub scale: [f64; 2],
    /// Where the picture's corner is, x and y.
    pub offset: [f64; 2],
}

impl Placement {
    /// A box `[x1, y1, x2, y2]` of the model's input in the picture's pixels, cut off at its borders.
    pub fn to_picture(&self, corners: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| {
            let (axis, value) = (i % 2, f64::from(corners[i]));
            ((value - self.offset[axis]) / self.scale[axis]).clamp(0.0, self.picture[axis] as f64) as f32
        })
    }
}

impl Default for Letterbox {
    /// Ultralytics' into the model's input.
    fn default() -> Self {
        Self { size: None, pad: ultralytics_pad(), place: Place::default(), rounding: SideRounding::default() }
    }
}

impl Letterbox {
    /// Height and width of the frame; 0 where the size is still the model's.
    pub(super) fn frame(&self) -> [usize; 2] {
        match self.size {
            None => [0, 0],
            Some(Extent::One(side)) => [side, side],
            Some(Extent::Exact(extents)) => extents,
        }
    }

    /// Width and height of the resized picture.
    pub(super) fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        let [frame_height, frame_width] = self.frame();
        let factor = self.factor(width, height);
        let side = |side: usize, most: usize| {
            let exact = side as f64 * factor;
            let whole = if self.rounding == SideRounding::Nearest { exact.round_ties_even() } else { exact.floor() };
            (whole as usize).clamp(1, most)
        };
        (side(width, frame_width), side(height, frame_height))
    }

    fn factor(&self, width: usize, height: usize) -> f64 {
        let [frame_height, frame_width] = self.frame();
        (frame_height as f64 / height as f64).min(frame_width as f64 / width as f64)
    }

    /// Pixels left of and above a resized picture.
    fn border(&self, (width, height): (usize, usize)) -> [usize; 2] {
        let [frame_height, frame_width] = self.frame();
        let before = |frame: usize, side: usize| match self.place {
            Place::Centre => (frame - side) / 2,
            Place::TopLeft => 0,
        };
        [before(frame_width, width), before(frame_height, height)]
    }

    /// Where a picture of `width × height` pixels lies.
    pub(super) fn placement(&self, width: usize, height: usize) -> Placement {
        let [frame_height, frame_width] = self.frame();
        let offset = self.border(self.resized(width, height)).map(|border| border as f64);
        // One factor for both axes, as the peers take boxes back, though the sides were rounded.
        let scale = [self.factor(width, height); 2];
        Placement { picture: [width, height], input: [frame_width, frame_height], scale, offset }
    }

    /// The frame around a resized picture.
    pub(super) fn enclose(&self, picture: &RgbImage) -> RgbImage {
        let [height, width] = self.frame();
        let [left, above] = self.border((picture.width, picture.height));
        let mut data = vec![self.pad; width * height * 3];
        for (y, row) in picture.data.chunks_exact(picture.width * 3).enumerate() {
            let to = ((above + y) * width + left) * 3;
            data[to..to + row.len()].copy_from_slice(row);
        }
        RgbImage { width, height, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_rounded_and_placed_as_each_peer_does() {
        let centre =
            Letterbox { size: Some(Extent::One(416)), pad: 114, place: Place::Centre, rounding: SideRounding::Nearest };
        let corner = Letterbox { place: Place::TopLeft, rounding: SideRounding::Down, ..centre };
        // 640 × 427 by 0.65: 277.55 rows.
        assert_eq!((centre.resized(640, 427), corner.resized(640, 427)), ((416, 278), (416, 277)));
        assert_eq!(centre.placement(640, 427).offset, [0.0, 69.0]);
        assert_eq!(corner.placement(640, 427).offset, [0.0, 0.0]);
        // An odd border of 139 rows: 69 above, as round(69.5 − 0.1).
        assert_eq!(Letterbox { rounding: SideRounding::Down, ..centre }.placement(640, 427).offset, [0.0, 69.0]);
        assert_eq!(centre.resized(1, 5000), (1, 416), "no side vanishes");
    }

    #[test]
    fn boxes_find_back_and_stay_in_the_picture() {
        let wide = Letterbox {
            size: Some(Extent::Exact([320, 640])),
            pad: 0,
            place: Place::Centre,
            rounding: SideRounding::Nearest,
        };
        let placement = wide.placement(320, 320);
        assert_eq!(placement.scale, [1.0, 1.0]);
        assert_eq!(placement.to_picture([170.0, 10.0, 500.0, 330.0]), [10.0, 10.0, 320.0, 320.0]);
    }
}

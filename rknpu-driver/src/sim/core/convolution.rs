//! The convolution itself: kernel groups × groups of channels × taps × output pixels.
//!
//! ```text
//! for each kernel group, group of channels, tap:          one tile of weights, in the order they lie in memory
//!     for each output pixel:                              the tap's input pixel, or the padding
//!         sums[pixel][kernel] += Σ_column tile[kernel][column] · input[column]
//! ```

use super::Arithmetic;
use crate::sim::cna::{Setting, Weights};
use crate::sim::error::SimError;

/// Bytes of weights read at once: enough to make reads few, small enough for the first-level cache.
const PIECE: usize = 16 << 10;

/// A feature in CBUF: `[h * width + w][channels]`, channels padded to whole tiles with zeros.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::sim) struct Features<T> {
    pub(in crate::sim) channels: usize,
    pub(in crate::sim) data: Vec<T>,
    /// What lies around the image, in every channel.
    pub(in crate::sim) pad: T,
}

/// The sums of a convolution, `[h][w][channel]`, and the input sums ([`super::Products::input_sums`]).
pub(in crate::sim) fn convolution<A: Arithmetic>(
    setting: &Setting,
    features: &Features<A::Feature>,
    weights: &mut Weights<'_>,
) -> Result<(Vec<A::Sum>, Vec<i64>), SimError> {
    let mut window = Window { setting, inputs: Vec::new(), padding: padding(setting, features) };
    let input_sums = match setting.input_sums && A::INTEGER {
        true if setting.depthwise => window.channel_sums::<A>(features),
        true => window.pixel_sums::<A>(features),
        false => Vec::new(),
    };
    let sums = match setting.depthwise {
        true => depthwise::<A>(&mut window, features, weights)?,
        false => direct::<A>(&mut window, features, weights)?,
    };
    Ok((sums, input_sums))
}

fn padding<T: Copy + Default>(setting: &Setting, features: &Features<T>) -> Vec<T> {
    let mut padding = vec![features.pad; features.channels];
    padding[setting.channels..].fill(T::default());
    padding
}

/// Input pixels under a kernel's taps.
struct Window<'a, T> {
    setting: &'a Setting,
    /// For each output pixel, the input pixel under the tap in hand; `None` in the padding.
    inputs: Vec<Option<usize>>,
    /// A pixel of padding.
    padding: Vec<T>,
}

impl<T: Copy + Default> Window<'_, T> {
    fn pixels(&self) -> usize {
        self.setting.out_width * self.setting.out_height
    }

    /// Moves to a tap.
    fn tap(&mut self, tap: usize) {
        let s = self.setting;
        let (x, y) = (tap % s.kernel_width * s.dilation.0, tap / s.kernel_width * s.dilation.1);
        self.inputs.clear();
        for out_y in 0..s.out_height {
            let line = (out_y * s.stride.1 + y).checked_sub(s.pad.1).filter(|line| *line < s.height);
            self.inputs.extend((0..s.out_width).map(|out_x| {
                let column = (out_x * s.stride.0 + x).checked_sub(s.pad.0).filter(|column| *column < s.width);
                Some(line? * s.width + column?)
            }));
        }
    }

    /// Channels `from..from + length` of the input of each output pixel.
    fn under<'f>(
        &'f self,
        features: &'f Features<T>,
        from: usize,
        length: usize,
    ) -> impl Iterator<Item = &'f [T]> + 'f {
        self.inputs.iter().map(move |input| match input {
            Some(pixel) => &features.data[pixel * features.channels + from..][..length],
            None => &self.padding[from..from + length],
        })
    }

    fn pixel_sums<A: Arithmetic<Feature = T>>(&mut self, features: &Features<T>) -> Vec<i64> {
        let mut sums = vec![0; self.pixels()];
        for tap in 0..self.setting.taps() {
            self.tap(tap);
            for (sum, input) in sums.iter_mut().zip(self.under(features, 0, features.channels)) {
                *sum += A::input_sum(input);
            }
        }
        sums
    }

    fn channel_sums<A: Arithmetic<Feature = T>>(&mut self, features: &Features<T>) -> Vec<i64> {
        let channels = self.setting.out_channels;
        let mut sums = vec![0; self.pixels() * channels];
        for tap in 0..self.setting.taps() {
            self.tap(tap);
            let length = self.setting.channels;
            for (sums, input) in sums.chunks_exact_mut(channels).zip(self.under(features, 0, length)) {
                for (sum, value) in sums.iter_mut().zip(input) {
                    *sum += A::input_sum(std::slice::from_ref(value));
                }
            }
        }
        sums
    }
}

fn direct<A: Arithmetic>(
    window: &mut Window<'_, A::Feature>,
    features: &Features<A::Feature>,
    weights: &mut Weights<'_>,
) -> Result<Vec<A::Sum>, SimError> {
    let setting = window.setting;
    let (pixels, outputs, group) = (window.pixels(), setting.out_channels, setting.format.kernel_group());
    let mut all = vec![A::Sum::default(); pixels * outputs];
    let mut sums = vec![A::Sum::default(); pixels * group];
    for first in (0..setting.kernels).step_by(group) {
        let rows = group.min(setting.kernels - first);
        sums.fill(A::Sum::default());
        kernel_group::<A>(window, features, weights, rows, &mut sums)?;
        for (all, sums) in all.chunks_exact_mut(outputs).zip(sums.chunks_exact(group)) {
            all[first..first + rows].copy_from_slice(&sums[..rows]);
        }
    }
    Ok(all)
}

/// `rows` kernels over all output pixels: sums `[pixel][kernel group]`.
fn kernel_group<A: Arithmetic>(
    window: &mut Window<'_, A::Feature>,
    features: &Features<A::Feature>,
    weights: &mut Weights<'_>,
    rows: usize,
    sums: &mut [A::Sum],
) -> Result<(), SimError> {
    let setting = window.setting;
    let (taps, channels, format) = (setting.taps(), setting.channels, setting.format);
    let stride = format.kernel_group();
    let full = format.bytes(A::COLUMNS) * rows;
    let run = (PIECE / (full * taps)).max(1) * A::COLUMNS;
    let (mut bytes, mut scratch) = (Vec::new(), Vec::new());
    window.tap(0);
    for start in (0..channels).step_by(run) {
        let end = channels.min(start + run);
        weights.next(format.bytes(end - start) * rows * taps, &mut bytes)?;
        let mut rest = bytes.as_slice();
        for from in (start..end).step_by(A::COLUMNS) {
            let columns = A::COLUMNS.min(end - from);
            for tap in 0..taps {
                let (tile, after) = rest.split_at(format.bytes(columns) * rows);
                rest = after;
                if taps > 1 {
                    window.tap(tap);
                }
                let tile = A::prepare(tile, rows, columns, &mut scratch);
                for (sums, input) in
                    sums.chunks_exact_mut(stride).zip(window.under(features, from, A::COLUMNS))
                {
                    A::tile(tile, input, &mut sums[..rows]);
                }
            }
        }
    }
    Ok(())
}

/// One kernel a channel. Weights lie in groups of 64 bytes of channels, tap after tap.
fn depthwise<A: Arithmetic>(
    window: &mut Window<'_, A::Feature>,
    features: &Features<A::Feature>,
    weights: &mut Weights<'_>,
) -> Result<Vec<A::Sum>, SimError> {
    let setting = window.setting;
    let (outputs, group) = (setting.out_channels, setting.format.depthwise_group());
    let mut sums = vec![A::Sum::default(); window.pixels() * outputs];
    let (mut bytes, mut kernel) = (Vec::new(), vec![A::Feature::default(); group]);
    for from in (0..setting.channels).step_by(group) {
        let length = group.min(setting.channels - from);
        for tap in 0..setting.taps() {
            weights.next(setting.format.bytes(length), &mut bytes)?;
            A::features(&bytes, &mut kernel[..length]);
            window.tap(tap);
            for (sums, input) in sums.chunks_exact_mut(outputs).zip(window.under(features, from, length)) {
                A::products(&kernel[..length], input, &mut sums[from..from + length]);
            }
        }
    }
    Ok(sums)
}

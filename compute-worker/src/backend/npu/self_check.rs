//! Whether a device computes what it should, found out before a model is entrusted to it.

use rknpu_driver::device::Device;
use rookery_kernels::{Activations, Kernels, LinearJob, Pool, W4, W8, Weights, tiles};

use super::call::Division;
use super::{NpuBackend, NpuError, NpuSettings};
use crate::config::NpuPolicy;

/// Shapes that are tried, M × K × N: one row and several, a K and an N that do not fill their tiles, enough for all cores.
const SHAPES: [[usize; 3]; 4] = [[1, 64, 64], [1, 896, 192], [5, 100, 70], [33, 288, 352]];

/// Multiplies seeded matrices of both forms in every address space that has cores of its own, by the way that the
/// backend's calls go, and compares the bits with the kernels'.
///
/// # Errors
/// When a call fails or a product is wrong.
pub(super) fn self_check(device: &Device, settings: &NpuSettings) -> Result<(), NpuError> {
    check(device, settings, &SHAPES)
}

/// The same with one small product of each form: whether a device that failed works again.
///
/// # Errors
/// As [`self_check`].
pub(super) fn probe(device: &Device, settings: &NpuSettings) -> Result<(), NpuError> {
    check(device, settings, &SHAPES[..1])
}

fn check(device: &Device, settings: &NpuSettings, shapes: &[[usize; 3]]) -> Result<(), NpuError> {
    let settings = NpuSettings { policy: NpuPolicy::Npu, fused: Vec::new(), ..settings.clone() };
    let kernels = Kernels::detect();
    let mut backend = NpuBackend::new(device.clone(), kernels, &settings);
    let shared = device.domains().iter().any(|domain| domain.cores.count() > 1);
    let spaces = if shared { 1 } else { device.domains().len() };
    let mut random = Random(0x5e1f_c4ec);
    for domain in &device.domains()[..spaces.min(device.domains().len())] {
        for &[rows, inner, outputs] in shapes {
            for four_bits in [false, true] {
                let matrix = Matrix::new(&mut random, inner, outputs, four_bits);
                let buffer = backend.store.insert(device, domain.id, &matrix.tiles)?;
                if !agrees(&mut backend, &matrix.view(&buffer), rows, &mut random)? {
                    return Err(NpuError::SelfCheck { rows, inner, outputs });
                }
            }
        }
    }
    Ok(())
}

/// Whether the device's outputs have the bits of the kernels'.
fn agrees(
    backend: &mut NpuBackend,
    weights: &Weights<'_>,
    rows: usize,
    random: &mut Random,
) -> Result<bool, NpuError> {
    let pool = Pool::new(1);
    let (inner, outputs) = (weights.cols(), weights.rows());
    let mut a = Activations::new();
    let x: Vec<f32> = (0..rows * inner).map(|_| random.value(-1000, 1000) as f32).collect();
    backend.kernels.quantize(&pool, &x, inner, &mut a);
    let job = |out| LinearJob { weights: *weights, bias: None, out, out_stride: outputs, out_column: 0 };
    let (mut expected, mut out) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
    backend.kernels.linear(&pool, &a, &mut [job(&mut expected)]);
    let mut jobs = [job(&mut out)];
    let division = Division::new(&backend.store, &mut backend.cost, 1, &a, &jobs);
    backend.compute(&pool, &a, &mut jobs, &division)?;
    Ok(expected.iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits()))
}

/// Seeded weights.
struct Matrix {
    inner: usize,
    outputs: usize,
    tiles: Vec<u8>,
    /// Empty for `w8`.
    multipliers: Vec<u8>,
    scales: Vec<f32>,
    row_sums: Vec<i32>,
}

impl Matrix {
    fn new(random: &mut Random, inner: usize, outputs: usize, four_bits: bool) -> Self {
        let (least, most) = if four_bits { (-8, 7) } else { (-127, 127) };
        let mut values: Vec<i8> = (0..inner * outputs).map(|_| random.value(least, most) as i8).collect();
        let groups = inner.div_ceil(tiles::W4_GROUP);
        let (mut packed, mut multipliers) = (Vec::new(), Vec::new());
        if four_bits {
            packed.resize(tiles::w4_len(outputs, inner), 0);
            tiles::pack_w4(outputs, inner, &values, &mut packed);
            multipliers = (0..outputs * groups).map(|_| random.value(1, 15) as u8).collect();
            for (index, value) in values.iter_mut().enumerate() {
                let group = index / inner * groups + index % inner / tiles::W4_GROUP;
                *value *= multipliers[group] as i8;
            }
        } else {
            let mut signed = vec![0; tiles::w8_len(outputs, inner)];
            tiles::pack_w8(outputs, inner, &values, &mut signed);
            packed.extend(signed.iter().map(|value| *value as u8));
        }
        let row_sums = values.chunks_exact(inner).map(|row| row.iter().map(|&value| i32::from(value)).sum());
        let scales = (0..outputs).map(|_| random.value(1, 1000) as f32 / 1024.0).collect();
        Self { inner, outputs, tiles: packed, multipliers, scales, row_sums: row_sums.collect() }
    }

    /// The matrix with its tiles in `stored`.
    fn view<'a>(&'a self, stored: &'a [u8]) -> Weights<'a> {
        let stored = &stored[..self.tiles.len()];
        let (rows, cols, scales, row_sums) = (self.outputs, self.inner, &self.scales[..], &self.row_sums[..]);
        if self.multipliers.is_empty() {
            return Weights::W8(W8 { rows, cols, tiles: tiles::signed(stored), scales, row_sums });
        }
        Weights::W4(W4 { rows, cols, tiles: stored, multipliers: &self.multipliers, scales, row_sums })
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// A value from `least` to `most`.
    fn value(&mut self, least: i64, most: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        least + ((z ^ (z >> 31)) % (most - least + 1) as u64) as i64
    }
}

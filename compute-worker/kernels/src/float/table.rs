//! The f32 half of a table of kernels: the generic bodies compiled with one instruction set's features.

use super::{attention, body};
use crate::checksum;
use crate::gemm::tile;
use crate::tiles::{TILE_BYTES, TILE_COLS, W4_TILE_ROWS, W8_TILE_ROWS};

/// Accumulators, activation scale, weight scales and bias of up to 64 channels to their outputs.
type Finish = unsafe fn(&[i32; 64], f32, &[f32], Option<&[f32]>, &mut [f32]);

/// Factors times one `w8` tile's rows, added to its columns' sums.
type AddColumns = unsafe fn(&[i8; TILE_BYTES], &[u32; W8_TILE_ROWS], &mut [u32; TILE_COLS]);
/// A `w4` tile and its rows' multipliers to two `w8` tiles.
type ExpandTile = unsafe fn(&[u8; TILE_BYTES], &[u8; W4_TILE_ROWS], [&mut [i8; TILE_BYTES]; 2]);

/// Pointers to the f32 kernels of one instruction set, and to plain loops over integers that the compiler turns into
/// vectors where the instruction set is known to it.
///
/// Each may be called only where that instruction set was detected; the arguments' lengths are checked by the
/// safe methods of [`crate::Kernels`], a wrong one panics or truncates but is never undefined behaviour, except
/// `attention::Task::out` and `tile::Task::out`, whose rules stand there.
pub(crate) struct FloatTable {
    pub(crate) quantize_row: unsafe fn(&[f32], &mut [i8]) -> f32,
    pub(crate) finish: Finish,
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub(crate) rope: unsafe fn(&mut [f32], usize, &[f32]),
    pub(crate) hadamard: unsafe fn(&mut [f32], usize),
    pub(crate) silu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) add_assign: unsafe fn(&mut [f32], &[f32]),
    pub(crate) log_softmax_stats: unsafe fn(&[f32]) -> (f32, f32),
    pub(crate) softmax: unsafe fn(&mut [f32]),
    pub(crate) attention: unsafe fn(&attention::Task<'_>, &mut attention::Scratch),
    pub(crate) gemm: unsafe fn(&tile::Task<'_>, &mut tile::Scratch),
    pub(crate) weighted_sum: unsafe fn(&[i32; 64], &[u32; 64]) -> u32,
    pub(crate) dot: unsafe fn(&[i8], &[u32]) -> u32,
    pub(crate) add_columns: AddColumns,
    pub(crate) expand_tile: ExpandTile,
}

/// Makes a module whose `TABLE` holds the bodies compiled with `$features`; `$token` yields the proof inside.
macro_rules! float_table {
    ($module:ident, $token:expr $(, $features:literal)?) => {
        pub(crate) mod $module {
            use super::*;

            pub(crate) static TABLE: FloatTable = FloatTable {
                quantize_row, finish, rms_norm, rope, hadamard, silu_mul, add_assign, log_softmax_stats, softmax, attention,
                gemm, weighted_sum, dot, add_columns, expand_tile,
            };

            float_table!(@fn $token, ($($features)?), quantize_row(x: &[f32], out: &mut [i8]) -> f32, body::quantize_row);
            float_table!(@fn $token, ($($features)?), finish(acc: &[i32; 64], sa: f32, sw: &[f32], bias: Option<&[f32]>, out: &mut [f32]) -> (), body::finish);
            float_table!(@fn $token, ($($features)?), rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> (), body::rms_norm);
            float_table!(@fn $token, ($($features)?), rope(heads: &mut [f32], head_dim: usize, table: &[f32]) -> (), body::rope);
            float_table!(@fn $token, ($($features)?), hadamard(x: &mut [f32], block: usize) -> (), body::hadamard);
            float_table!(@fn $token, ($($features)?), silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) -> (), body::silu_mul);
            float_table!(@fn $token, ($($features)?), add_assign(x: &mut [f32], y: &[f32]) -> (), body::add_assign);
            float_table!(@fn $token, ($($features)?), log_softmax_stats(logits: &[f32]) -> (f32, f32), body::log_softmax_stats);
            float_table!(@fn $token, ($($features)?), softmax(x: &mut [f32]) -> (), body::softmax);
            float_table!(@plain ($($features)?), weighted_sum(values: &[i32; 64], factors: &[u32; 64]) -> u32, checksum::weighted_sum);
            float_table!(@plain ($($features)?), dot(a: &[i8], v: &[u32]) -> u32, checksum::dot);
            float_table!(@plain ($($features)?), add_columns(tile: &[i8; TILE_BYTES], factors: &[u32; W8_TILE_ROWS], v: &mut [u32; TILE_COLS]) -> (), checksum::add_columns);
            float_table!(@plain ($($features)?), expand_tile(tile: &[u8; TILE_BYTES], multipliers: &[u8; W4_TILE_ROWS], out: [&mut [i8; TILE_BYTES]; 2]) -> (), checksum::expand_tile);
            float_table!(@fn $token, ($($features)?), gemm(task: &tile::Task<'_>, scratch: &mut tile::Scratch) -> (), tile::run);
            float_table!(@fn $token, ($($features)?), attention(task: &attention::Task<'_>, scratch: &mut attention::Scratch) -> (), attention::run);
        }
    };
    (@fn $token:expr, ($($features:literal)?), $name:ident($($arg:ident: $type:ty),*) -> $out:ty, $body:path) => {
        $(#[target_feature(enable = $features)])?
        fn $name($($arg: $type),*) -> $out {
            $body($token, $($arg),*)
        }
    };
    (@plain ($($features:literal)?), $name:ident($($arg:ident: $type:ty),*) -> $out:ty, $body:path) => {
        $(#[target_feature(enable = $features)])?
        fn $name($($arg: $type),*) -> $out {
            $body($($arg),*)
        }
    };
}

float_table!(scalar, crate::simd::scalar::Scalar);
#[cfg(target_arch = "x86_64")]
float_table!(
    avx512,
    // SAFETY: the functions that evaluate this are compiled for, and called only with, these features.
    unsafe { crate::simd::avx512::Avx512::new() },
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
);
#[cfg(target_arch = "x86_64")]
float_table!(
    avx2,
    // SAFETY: the functions that evaluate this are compiled for, and called only with, these features.
    unsafe { crate::simd::avx2::Avx2::new() },
    "avx2,fma,f16c"
);
#[cfg(target_arch = "aarch64")]
float_table!(
    neon,
    // SAFETY: the functions that evaluate this are compiled for, and called only with, this feature.
    unsafe { crate::simd::neon::Neon::new() },
    "neon"
);

//! From accumulators that another device computed to the very outputs that [`Kernels::linear`] gives.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::checksum::factors;
use crate::integer::PANEL;
use crate::linear::{LinearJob, check};
use crate::pool::{Pool, SharedMut};
use crate::{Activations, Kernels};

/// Panels times rows of a task: some tens of microseconds of work.
const TASK_VALUES: usize = 256;

/// int32 accumulators as a device left them: channel n of row m is
/// `values[n / 4 · group_stride + m · row_stride + n % 4]`.
///
/// Row-major rows have `group_stride` 4. The RK3588's NPU writes surfaces of four channels (16 bytes) a pixel, which has
/// `row_stride` 4 and the surface as `group_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Accumulators<'a> {
    /// The values.
    pub values: &'a [i32],
    /// Values from one row to the next.
    pub row_stride: usize,
    /// Values from one group of four channels to the next.
    pub group_stride: usize,
}

impl Accumulators<'_> {
    /// Channels `first..first + count` (at most 64, `first` a multiple of 4) of row m; zeros beyond.
    fn panel(&self, m: usize, first: usize, count: usize) -> [i32; PANEL] {
        let mut acc = [0; PANEL];
        let start = first / 4 * self.group_stride + m * self.row_stride;
        if self.group_stride == 4 {
            acc[..count].copy_from_slice(&self.values[start..start + count]);
            return acc;
        }
        for (group, to) in acc[..count].chunks_mut(4).enumerate() {
            let at = start + group * self.group_stride;
            to.copy_from_slice(&self.values[at..at + to.len()]);
        }
        acc
    }

    /// Asserts that `rows` × `channels` values are there.
    fn check(&self, rows: usize, channels: usize) {
        if rows == 0 || channels == 0 {
            return;
        }
        let (group, lane) = ((channels - 1) / 4, (channels - 1) % 4);
        let last = group.checked_mul(self.group_stride).and_then(|at| {
            let row = (rows - 1).checked_mul(self.row_stride)?;
            at.checked_add(row)?.checked_add(lane)
        });
        assert!(
            last.is_some_and(|last| last < self.values.len()),
            "finish: {} accumulators are not {rows} rows of {channels}",
            self.values.len()
        );
    }
}

impl Kernels {
    /// Turns accumulators into a job's outputs, with the very bits of [`Kernels::linear`]. With `columns`, the weights'
    /// [`Kernels::checksum`], also verifies the accumulators: false if they cannot be the product of `a` and the
    /// weights; outputs are then wrong.
    ///
    /// # Panics
    /// When a slice does not fit the shape.
    #[must_use = "false means that the outputs are wrong"]
    pub fn finish(
        &self,
        pool: &Pool,
        a: &Activations,
        acc: &Accumulators<'_>,
        job: &mut LinearJob<'_>,
        columns: Option<&[u32]>,
    ) -> bool {
        let view = check(a, job);
        let (rows, channels) = (a.rows(), view.weights.rows());
        acc.check(rows, channels);
        assert!(columns.is_none_or(|v| v.len() == a.cols()), "finish: checksum of another K");
        if rows == 0 || channels == 0 {
            return true;
        }
        // Σ r·acc − Σ a·v of each row: zero if all is well.
        let differences: Vec<AtomicU32> = (0..rows).map(|_| AtomicU32::new(0)).collect();
        let panels = channels.div_ceil(PANEL);
        let per_task = (TASK_VALUES / rows).max(1);
        let panel_tasks = panels.div_ceil(per_task);
        let rows_per_task = (32 * 1024 / a.cols().max(1)).max(1);
        let row_tasks = if columns.is_some() { rows.div_ceil(rows_per_task) } else { 0 };
        let base = SharedMut(view.out.get());
        pool.run(panel_tasks + row_tasks, &|task| {
            if let Some(task) = task.checked_sub(panel_tasks) {
                let columns = columns.unwrap_or_default();
                let these = differences.iter().enumerate().skip(task * rows_per_task).take(rows_per_task);
                for (m, difference) in these {
                    // SAFETY: this table exists only where its instruction set was detected.
                    let sum = unsafe { (self.float.dot)(a.row(m), columns) };
                    difference.fetch_sub(sum, Ordering::Relaxed);
                }
                return;
            }
            for panel in task * per_task..panels.min((task + 1) * per_task) {
                let (start, end) = (panel * PANEL, channels.min((panel + 1) * PANEL));
                let scales = &view.weights.scales()[start..end];
                let bias = view.bias.map(|bias| &bias[start..end]);
                let factors = factors::<PANEL>(start);
                for (m, difference) in differences.iter().enumerate() {
                    let acc = acc.panel(m, start, end - start);
                    // SAFETY: `check` asserted that row m's columns lie in `out`, which is borrowed mutably until
                    // `run` returns; each panel belongs to one task, so no two slices overlap.
                    let out = unsafe {
                        std::slice::from_raw_parts_mut(base.get().add(m * view.stride + start), end - start)
                    };
                    // SAFETY: this table exists only where its instruction set was detected.
                    unsafe { (self.float.finish)(&acc, a.scale(m), scales, bias, out) };
                    if columns.is_some() {
                        // SAFETY: as above.
                        let sum = unsafe { (self.float.weighted_sum)(&acc, &factors) };
                        difference.fetch_add(sum, Ordering::Relaxed);
                    }
                }
            }
        });
        columns.is_none() || differences.into_iter().all(|difference| difference.into_inner() == 0)
    }
}

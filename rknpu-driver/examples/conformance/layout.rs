//! Native layouts: logical NCHW elements to the NPU's cubes and back.

use super::vector::Tensor;

/// Pixels that surfaces of internal and output tensors are rounded up to.
const SURFACE_STEP: usize = 4;

/// Where the elements of a tensor lie.
pub(crate) struct Layout {
    element: usize,
    shape: [usize; 4],
    /// Channels of an atom; 0 for plain row-major tensors.
    lanes: usize,
    /// Bytes from one line to the next, and from one surface to the next.
    line: usize,
    surface: usize,
}

/// Bytes that the compiler pads lines of packed input to, where it does.
const LINE_STEP: usize = 16;

/// Bytes of an element.
pub(crate) fn element_bytes(dtype: &str) -> Option<usize> {
    match dtype {
        "i8" | "u8" => Some(1),
        "i16" | "f16" | "bf16" => Some(2),
        "i32" | "f32" => Some(4),
        _ => None,
    }
}

impl Layout {
    /// The layout of a tensor: cubes where the native shape is N C1 H W C2, row-major elements otherwise.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self, String> {
        let element =
            element_bytes(&tensor.dtype).ok_or_else(|| format!("{}: dtype {}", tensor.name, tensor.dtype))?;
        let (&[n, c, h, w], &[_, _, _, _, lanes]) = (tensor.shape.as_slice(), tensor.native.as_slice())
        else {
            let elements = tensor.shape.iter().product();
            return Ok(Self { element, shape: [1, 1, 1, elements], lanes: 0, line: 0, surface: 0 });
        };
        let pixels = h * w;
        let tight = tensor.mem == "input" || pixels == 1;
        let atom = lanes * element;
        let padded = (w * atom).next_multiple_of(LINE_STEP);
        if n * h * padded == tensor.bytes && atom < LINE_STEP && c <= lanes {
            return Ok(Self { element, shape: [n, c, h, w], lanes, line: padded, surface: h * padded });
        }
        let surface = if tight { pixels } else { pixels.next_multiple_of(SURFACE_STEP) };
        Ok(Self { element, shape: [n, c, h, w], lanes, line: w * atom, surface: surface * atom })
    }

    /// Bytes from the tensor's first to its last element.
    pub(crate) fn len(&self) -> usize {
        let [n, c, _, _] = self.shape;
        match self.lanes {
            0 => self.shape.iter().product::<usize>() * self.element,
            lanes => n * c.div_ceil(lanes) * self.surface,
        }
    }

    /// Runs of elements that lie together: (byte offset, index of the first element in NCHW, elements, NCHW step).
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let [n, c, h, w] = self.shape;
        let pixels = h * w;
        let plain = (self.lanes == 0).then_some(Run { offset: 0, first: 0, count: pixels, step: 1 });
        let groups = if self.lanes == 0 { 0 } else { c.div_ceil(self.lanes) };
        let atoms = (0..n * groups).flat_map(move |plane| {
            let (batch, group) = (plane / groups, plane % groups);
            (0..pixels).map(move |pixel| Run {
                offset: plane * self.surface + pixel / w * self.line + pixel % w * self.lanes * self.element,
                first: (batch * c + group * self.lanes) * pixels + pixel,
                count: self.lanes.min(c - group * self.lanes),
                step: pixels,
            })
        });
        plain.into_iter().chain(atoms)
    }

    /// Logical elements to the native layout; what is padding is zero.
    pub(crate) fn pack(&self, logical: &[u8]) -> Vec<u8> {
        let mut native = vec![0; self.len()];
        for run in self.runs() {
            for index in 0..run.count {
                let from = (run.first + index * run.step) * self.element;
                let to = run.offset + index * self.element;
                native[to..to + self.element].copy_from_slice(&logical[from..from + self.element]);
            }
        }
        native
    }

    /// Native bytes to logical elements, read run by run through `read(offset, into)`.
    pub(crate) fn unpack<E>(
        &self,
        mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Vec<u8>, E> {
        let mut logical = vec![0; self.shape.iter().product::<usize>() * self.element];
        let mut bytes = Vec::new();
        for run in self.runs() {
            bytes.resize(run.count * self.element, 0);
            read(run.offset, &mut bytes)?;
            for (index, element) in bytes.chunks_exact(self.element).enumerate() {
                let to = (run.first + index * run.step) * self.element;
                logical[to..to + self.element].copy_from_slice(element);
            }
        }
        Ok(logical)
    }
}

/// Elements that lie together.
pub(crate) struct Run {
    /// Bytes from the tensor's base.
    offset: usize,
    /// Logical index of the first element.
    first: usize,
    count: usize,
    /// Logical distance of neighbours.
    step: usize,
}

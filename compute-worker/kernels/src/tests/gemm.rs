use super::{Random, bits, tables};
use crate::{Gemm, Kernels, Pool};

/// A product and what it is added to, with strides beyond the rows.
struct Case {
    shape: [usize; 3],
    a: Vec<f32>,
    b: Vec<f32>,
    out: Vec<f32>,
}

/// Values between the rows of `a`, `b` and the result.
const GAPS: [usize; 3] = [3, 0, 5];

impl Case {
    fn new(random: &mut Random, shape: [usize; 3]) -> Case {
        let [m, n, k] = shape;
        let mut values = |rows: usize, cols: usize| random.floats(rows * cols, 1.0);
        let a = values(m, k + GAPS[0]);
        let b = values(n, k + GAPS[1]);
        let out = values(m, n + GAPS[2]);
        Case { shape, a, b, out }
    }

    fn job(&self) -> Gemm<'_> {
        let [m, n, k] = self.shape;
        Gemm { m, n, k, a: &self.a, a_stride: k + GAPS[0], b: &self.b, b_stride: k + GAPS[1] }
    }

    fn run(&self, kernels: &Kernels, pool: &Pool) -> Vec<f32> {
        let mut out = self.out.clone();
        kernels.gemm(pool, &self.job(), -0.5, &mut out, self.shape[1] + GAPS[2]);
        out
    }

    /// In f64, rounded once.
    fn exact(&self) -> Vec<f32> {
        let [m, n, _] = self.shape;
        let job = self.job();
        let mut out = self.out.clone();
        for row in 0..m {
            for col in 0..n {
                let (a, b) = (&job.a[row * job.a_stride..], &job.b[col * job.b_stride..]);
                let products = a.iter().zip(b).take(job.k).map(|(&a, &b)| f64::from(a) * f64::from(b));
                let at = row * (n + GAPS[2]) + col;
                out[at] = (f64::from(out[at]) - 0.5 * products.sum::<f64>()) as f32;
            }
        }
        out
    }
}

const SHAPES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [2, 17, 5],
    [7, 16, 256],
    [9, 47, 257],
    [25, 33, 130],
    [50, 100, 513],
    [5, 400, 40],
    [200, 385, 3],
    [3, 15, 700],
];

#[test]
fn every_table_and_number_of_threads_gives_the_scalar_bits() {
    let mut random = Random(31);
    let pools = [Pool::new(1), Pool::new(3)];
    for shape in SHAPES {
        let case = Case::new(&mut random, shape);
        let expected = bits(&case.run(tables()[0], &pools[0]));
        for kernels in tables() {
            for pool in &pools {
                assert_eq!(bits(&case.run(kernels, pool)), expected, "{kernels:?} {shape:?}");
            }
        }
    }
}

#[test]
fn products_are_close_to_exact_ones_and_gaps_are_left_alone() {
    let mut random = Random(32);
    let pool = Pool::new(2);
    for shape in SHAPES {
        let case = Case::new(&mut random, shape);
        let bound = 1e-7 * (shape[2] as f32 + 8.0);
        for (at, (got, exact)) in case.run(Kernels::detect(), &pool).iter().zip(case.exact()).enumerate() {
            assert!((got - exact).abs() <= bound, "{shape:?} at {at}: {got} for {exact}");
            let gap = at % (shape[1] + GAPS[2]) >= shape[1];
            assert!(!gap || *got == case.out[at], "{shape:?} wrote into the gap at {at}");
        }
    }
}

#[test]
fn a_part_of_a_product_has_the_bits_of_the_whole() {
    let mut random = Random(33);
    let pool = Pool::new(2);
    let case = Case::new(&mut random, [60, 130, 300]);
    let whole = case.run(Kernels::detect(), &pool);
    let stride = 130 + GAPS[2];
    for [row, col, m, n] in [[0, 0, 60, 1], [13, 5, 10, 64], [59, 100, 1, 30]] {
        let job = case.job();
        let part = Gemm { m, n, a: &case.a[row * job.a_stride..], b: &case.b[col * job.b_stride..], ..job };
        let mut out = case.out.clone();
        Kernels::detect().gemm(&pool, &part, -0.5, &mut out[row * stride + col..], stride);
        for row in row..row + m {
            let at = row * stride + col..row * stride + col + n;
            assert_eq!(bits(&out[at.clone()]), bits(&whole[at]), "row {row}");
        }
    }
}

#[test]
fn empty_products_add_nothing() {
    let pool = Pool::new(1);
    let mut out = [1.0; 4];
    for [m, n, k] in [[0, 2, 2], [2, 0, 2], [2, 2, 0]] {
        let job = Gemm { m, n, k, a: &[1.0; 4], a_stride: 2, b: &[1.0; 4], b_stride: 2 };
        Kernels::detect().gemm(&pool, &job, 1.0, &mut out, 2);
        assert_eq!(out, [1.0; 4]);
    }
}

#[test]
#[should_panic(expected = "b of 5 values does not hold 2 x 3 with rows 3 apart")]
fn a_matrix_that_is_too_short_is_refused() {
    let job = Gemm { m: 1, n: 2, k: 3, a: &[0.0; 3], a_stride: 3, b: &[0.0; 5], b_stride: 3 };
    Kernels::detect().gemm(&Pool::new(1), &job, 1.0, &mut [0.0; 2], 2);
}

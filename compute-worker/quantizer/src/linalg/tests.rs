use super::*;
use rookery_kernels::{Activations, Isa};

/// A small deterministic generator (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Near enough normal, variance 1.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u32 << 24) as f32).sum::<f32>() - 6.0
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// int8 rows whose columns depend on each other: each is half the one before.
pub(crate) fn activations(random: &mut Random, tokens: usize, n: usize) -> Activations {
    let mut values = Vec::with_capacity(tokens * n);
    for _ in 0..tokens {
        let mut last = 0.0;
        for _ in 0..n {
            last = 0.8 * last + random.normal();
            values.push((last * 20.0).clamp(-127.0, 127.0) as i8);
        }
    }
    Activations::from_rows(n, &values, &vec![0.25; tokens])
}

/// Everything that must give the same bits: the scalar table, the best one, other numbers of threads.
pub(crate) fn computes() -> Vec<Compute> {
    let scalar = Kernels::for_isa(Isa::Scalar).unwrap();
    vec![
        Compute { kernels: scalar, pool: Pool::new(1) },
        Compute { kernels: Kernels::detect(), pool: Pool::new(1) },
        Compute { kernels: Kernels::detect(), pool: Pool::new(3) },
    ]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// U and D of a symmetric matrix, column by column from the last, in f64.
fn naive_factors(h: &[f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut u, mut d) = (vec![0.0; n * n], vec![0.0; n]);
    for j in (0..n).rev() {
        let rest = |k: usize, u: &[f64], d: &[f64]| -> f64 {
            h[k * n + j] - (j + 1..n).map(|i| u[k * n + i] * d[i] * u[j * n + i]).sum::<f64>()
        };
        d[j] = rest(j, &u, &d);
        for k in 0..j {
            u[k * n + j] = rest(k, &u, &d) / d[j];
        }
        u[j * n + j] = 1.0;
    }
    (u, d)
}

#[test]
fn second_moments_are_exact() {
    let mut random = Random(1);
    let compute = Compute::new(2);
    for (tokens, n) in [(1, 1), (37, 70), (50, 600), (3, 128)] {
        let a = activations(&mut random, tokens, n);
        let h = Hessian::of(&compute, &a);
        assert_eq!((h.n, h.tokens), (n, tokens));
        for i in 0..n {
            for j in 0..n {
                let product = |m: usize| i32::from(a.row(m)[i]) * i32::from(a.row(m)[j]);
                assert_eq!(h.values[i * n + j], (0..tokens).map(product).sum::<i32>() as f32, "{i} {j}");
            }
        }
        let mut twice = h.clone();
        twice.add(&h);
        assert_eq!(twice.tokens, 2 * tokens);
        assert_eq!(twice.diagonal()[0], 2.0 * h.diagonal()[0]);
    }
}

#[test]
fn factors_are_those_of_exact_arithmetic() {
    let mut random = Random(2);
    let compute = Compute::new(2);
    for n in [1, 2, 31, 128, 129, 300] {
        let h = Hessian::of(&compute, &activations(&mut random, 2 * n + 8, n));
        let damping = 0.01;
        let factors = Feedback::factor(&compute, Hessian { tokens: 0, ..h.clone() }, damping).unwrap();
        assert_eq!(factors.damping(), damping);
        assert_eq!(factors.importance(), h.diagonal());
        let mut damped: Vec<f64> = h.values.iter().map(|&v| f64::from(v)).collect();
        (0..n).for_each(|i| damped[i * n + i] += f64::from(factors.lambda()));
        let (u, d) = naive_factors(&damped, n);
        for k in 0..n {
            let pivot = f64::from(factors.pivots()[k]);
            assert!((pivot / d[k] - 1.0).abs() < 1e-4, "pivot {k} of {n}: {pivot} for {}", d[k]);
            for j in k + 1..n {
                let (got, exact) = (f64::from(factors.upper()[k * n + j]), u[k * n + j]);
                assert!((got - exact).abs() < 2e-4, "U[{k}][{j}] of {n}: {got} for {exact}");
            }
        }
        let mut rows = Vec::new();
        for block in blocks(n) {
            factors.hessian_rows(&block, &mut rows);
            for (at, value) in rows.iter().enumerate() {
                let exact = damped[block.start * n + at] as f32;
                assert!((value - exact).abs() <= exact.abs() * 1e-6, "row {} of H", block.start + at / n);
            }
        }
    }
}

#[test]
fn factors_and_solutions_do_not_depend_on_the_machine() {
    let mut random = Random(3);
    let n = 200;
    let a = activations(&mut random, 300, n);
    let rhs = random.normals(7 * n);
    let of = |compute: &Compute| {
        let h = Hessian::of(compute, &a);
        let x = solve_spd(compute, &h.values, n, &rhs, 50.0).unwrap();
        let factors = Feedback::factor(compute, h, 0.02).unwrap();
        [bits(factors.upper()), bits(factors.pivots()), bits(&x)]
    };
    let all: Vec<_> = computes().iter().map(of).collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn damping_is_raised_where_it_is_not_enough() {
    let mut random = Random(4);
    let compute = Compute::new(1);
    // Fewer tokens than inputs: singular.
    let h = Hessian::of(&compute, &activations(&mut random, 20, 150));
    let few = Feedback::factor(&compute, h.clone(), 0.01).unwrap();
    assert_eq!(few.damping(), 0.7 * 150.0 / 20.0);
    let h = Hessian { tokens: 0, ..h };
    let factors = Feedback::factor(&compute, h.clone(), 0.0).unwrap();
    assert!(factors.damping() > 0.0 && factors.damping() <= 0.01, "{}", factors.damping());
    let again = Feedback::factor(&compute, h, 0.05).unwrap();
    assert_eq!(again.damping(), 0.05);
}

#[test]
fn hopeless_matrices_are_refused() {
    let compute = Compute::new(1);
    let refused = |values: [f32; 4]| {
        let h = Hessian { n: 2, values: values.to_vec(), tokens: 0 };
        Feedback::factor(&compute, h, 0.01).unwrap_err()
    };
    assert_eq!(refused([0.0; 4]), LinalgError::Zero { n: 2 });
    assert!(matches!(refused([1.0, 0.0, 0.0, f32::NAN]), LinalgError::Diagonal { at: 1, .. }));
    assert!(matches!(refused([-1.0, 0.0, 0.0, 1.0]), LinalgError::Diagonal { at: 0, .. }));
    assert!(matches!(refused([1.0, f32::NAN, f32::NAN, 1.0]), LinalgError::NotPositive { .. }));
    let error = refused([1.0, 5.0, 5.0, 1.0]);
    assert_eq!(error, LinalgError::NotPositive { n: 2, at: 0, damping: 1.0 });
    assert!(error.to_string().contains("calibrate on more or other text"), "{error}");
}

#[test]
fn systems_are_solved() {
    let mut random = Random(5);
    let compute = Compute::new(2);
    for (rows, n) in [(1, 1), (3, 40), (20, 128), (5, 333)] {
        let h = Hessian::of(&compute, &activations(&mut random, 3 * n, n));
        let ridge = 0.01 * h.values[0];
        let x = random.normals(rows * n);
        let mut rhs = vec![0.0; rows * n];
        for row in 0..rows {
            for j in 0..n {
                let product = |i: usize| f64::from(x[row * n + i]) * f64::from(h.values[i * n + j]);
                let sum = (0..n).map(product).sum::<f64>();
                rhs[row * n + j] = (sum + f64::from(ridge) * f64::from(x[row * n + j])) as f32;
            }
        }
        let found = solve_spd(&compute, &h.values, n, &rhs, ridge).unwrap();
        for (found, x) in found.iter().zip(&x) {
            assert!((found - x).abs() < 2e-3, "{rows} x {n}: {found} for {x}");
        }
    }
    let singular = vec![1.0; 9];
    let error = solve_spd(&compute, &singular, 3, &[1.0; 3], 0.0).unwrap_err();
    assert!(matches!(error, LinalgError::NotPositive { damping: 0.0, .. }), "{error}");
}

//! Paley's Hadamard matrices (Paley 1933, "On orthogonal matrices"): orders that are no power of two.
//!
//! With χ the quadratic character of the field of `q` elements (1 of a square, −1 of any other, 0 of zero) and
//! `Q[a][b] = χ(a − b)`:
//!
//! ```text
//! construction I,  q ≡ 3 mod 4:  P = I + [ 0  1 ]                    of order q + 1
//!                                        [−1  Q ]
//! construction II, q ≡ 1 mod 4:  P = [0 1] ⊗ [1  1] + I ⊗ [ 1 −1]    of order 2 (q + 1)
//!                                    [1 Q]   [1 −1]       [−1 −1]
//! ```
//! Fields of `p` and of `p²` elements are implemented, `p` an odd prime. An element of the latter is `x + y·√r` with `r`
//! no square modulo `p`; it is a square exactly where its norm `x² − r·y²` is one modulo `p`.

use super::hadamard::{LANES, Lanes};

/// Largest order built: every row index fits a byte, and the dense product stays cheap.
pub(super) const MAX_ORDER: usize = 256;

/// One of Paley's matrices, kept as what its product needs.
#[derive(Debug)]
pub(super) struct Paley {
    order: usize,
    /// For each column, the rows that hold +1; all others hold −1.
    positive: Vec<Vec<u8>>,
}

impl Paley {
    /// The matrix of this order, if one of the two constructions gives it.
    pub(super) fn new(order: usize) -> Option<Self> {
        if !(4..=MAX_ORDER).contains(&order) || !order.is_multiple_of(4) {
            return None;
        }
        if let Some(field) = Field::new(order - 1) {
            return Some(Self::collect(order, |row, column| first(&field, row, column)));
        }
        let field = Field::new(order / 2 - 1).filter(|field| field.size % 4 == 1)?;
        Some(Self::collect(order, |row, column| second(&field, row, column)))
    }

    fn collect(order: usize, is_positive: impl Fn(usize, usize) -> bool) -> Self {
        let rows =
            |column| (0..=u8::MAX).take(order).filter(|&row| is_positive(row.into(), column)).collect();
        Self { order, positive: (0..order).map(rows).collect() }
    }

    pub(super) fn order(&self) -> usize {
        self.order
    }

    /// `x ← xᵀ·P` in each lane. A column's sum is twice that of its positive rows less that of all rows, each in
    /// ascending order.
    pub(super) fn apply(&self, x: &mut [Lanes]) {
        let mut out = [[0.0; LANES]; MAX_ORDER];
        let mut all = [0.0; LANES];
        x.iter().for_each(|row| add(&mut all, row));
        for (out, positive) in out.iter_mut().zip(&self.positive) {
            let mut sum = [0.0; LANES];
            positive.iter().for_each(|&row| add(&mut sum, &x[usize::from(row)]));
            for ((out, sum), all) in out.iter_mut().zip(sum).zip(all) {
                *out = (sum + sum) - all;
            }
        }
        x.copy_from_slice(&out[..self.order]);
    }
}

fn add(sum: &mut Lanes, row: &Lanes) {
    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
}

/// Sign of an entry of construction I.
fn first(field: &Field, row: usize, column: usize) -> bool {
    match (row, column) {
        (0, _) => true,
        (_, 0) => false,
        _ => row == column || field.is_square_difference(row - 1, column - 1),
    }
}

/// Sign of an entry of construction II.
fn second(field: &Field, row: usize, column: usize) -> bool {
    let (block, within) = ((row / 2, column / 2), (row % 2, column % 2));
    if block.0 == block.1 {
        return within == (0, 0);
    }
    let conference = block.0 == 0 || block.1 == 0 || field.is_square_difference(block.0 - 1, block.1 - 1);
    conference == (within != (1, 1))
}

/// A finite field of odd size, as far as squares in it are concerned.
#[derive(Debug)]
struct Field {
    size: usize,
    prime: usize,
    /// `r`, for a field of `prime²` elements.
    non_square: Option<usize>,
    /// Whether a number below `prime` is the square of one other than 0.
    squares: Vec<bool>,
}

impl Field {
    fn new(size: usize) -> Option<Self> {
        let is_prime = |n: usize| n > 2 && (2..n).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        let root = size.isqrt();
        let prime = match size {
            _ if is_prime(size) => size,
            _ if root * root == size && is_prime(root) => root,
            _ => return None,
        };
        let mut squares = vec![false; prime];
        (1..prime).for_each(|x| squares[x * x % prime] = true);
        let non_square = (2..prime).find(|&x| !squares[x]).filter(|_| prime != size);
        Some(Self { size, prime, non_square, squares })
    }

    /// Whether `a − b` is a square other than 0; elements are numbered `x + prime·y`.
    fn is_square_difference(&self, a: usize, b: usize) -> bool {
        let p = self.prime;
        let x = (a % p + p - b % p) % p;
        match self.non_square {
            None => self.squares[x],
            Some(r) => {
                let y = (a / p + p - b / p) % p;
                // p − r stands for −r.
                self.squares[(x * x + (p - r) * y * y) % p]
            }
        }
    }
}

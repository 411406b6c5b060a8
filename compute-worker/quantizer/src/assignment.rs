//! Which tensors and heads keep eight bits, under a byte budget.
//!
//! Each unit is w4 unless it is bought; buying it costs its extra bytes and saves its KL divergence. That is the 0/1
//! knapsack problem, and it is solved exactly by dynamic programming over bytes, on a grid that depends on the units
//! alone: what fits a budget fits every larger one, so more budget is never worse.

/// Cells that the extra bytes of all units are divided into. Rounding each unit's bytes up to a cell wastes less than a
/// thousandth of what a model's units can take, and the table stays at some tens of megabytes.
const CELLS: u64 = 1 << 18;

/// What can be bought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// Bytes that w8 takes beyond w4.
    pub bytes: u64,
    /// KL divergence in nats that w8 saves; what is not above zero is never bought.
    pub saves: f64,
}

/// Which items to buy with `budget` bytes so that the sum of what they save is largest: one entry for each item.
///
/// Of equally good choices the one of fewer grid cells is taken, then the one without the later items.
pub fn choose(items: &[Item], budget: u64) -> Vec<bool> {
    let total: u64 = items.iter().filter(|item| item.saves > 0.0).map(|item| item.bytes).sum();
    let mut chosen: Vec<bool> = items.iter().map(|item| item.saves > 0.0).collect();
    if total <= budget {
        return chosen;
    }
    let cell = (total / CELLS).max(1).next_power_of_two();
    // Rounded up, so that what is chosen on the grid fits in bytes.
    let cells = |bytes: u64| bytes.div_ceil(cell) as usize;
    let capacity = (budget / cell) as usize;
    let mut best = vec![0.0f64; capacity + 1];
    let mut taken: Vec<Bits> = Vec::with_capacity(items.len());
    for item in items {
        let weight = cells(item.bytes);
        let mut bits = Bits::new(capacity + 1);
        if item.saves > 0.0 {
            for room in (weight..=capacity).rev() {
                let with = best[room - weight] + item.saves;
                if with > best[room] {
                    best[room] = with;
                    bits.set(room);
                }
            }
        }
        taken.push(bits);
    }
    // The smallest room with the best value.
    let mut room = best.iter().position(|value| *value == best[capacity]).unwrap_or(capacity);
    for (index, item) in items.iter().enumerate().rev() {
        chosen[index] = taken[index].get(room);
        if chosen[index] {
            room -= cells(item.bytes);
        }
    }
    chosen
}

/// One bit for each cell.
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn set(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn get(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn saved(items: &[Item], chosen: &[bool]) -> f64 {
        items.iter().zip(chosen).filter(|(_, chosen)| **chosen).map(|(item, _)| item.saves).sum()
    }

    fn spent(items: &[Item], chosen: &[bool]) -> u64 {
        items.iter().zip(chosen).filter(|(_, chosen)| **chosen).map(|(item, _)| item.bytes).sum()
    }

    fn items() -> impl Strategy<Value = Vec<Item>> {
        let item = (1u64..60, -2i32..50).prop_map(|(bytes, saves)| Item { bytes, saves: f64::from(saves) });
        proptest::collection::vec(item, 0..11)
    }

    proptest! {
        #[test]
        fn nothing_that_fits_saves_more(items in items(), budget in 0u64..400) {
            let chosen = choose(&items, budget);
            prop_assert!(spent(&items, &chosen) <= budget);
            for mask in 0u32..1 << items.len() {
                let other: Vec<bool> = (0..items.len()).map(|i| mask >> i & 1 == 1).collect();
                if spent(&items, &other) <= budget {
                    prop_assert!(saved(&items, &other) <= saved(&items, &chosen));
                }
            }
        }

        #[test]
        fn more_budget_is_never_worse(
            raw in proptest::collection::vec((1u64..1 << 34, 0.0f64..0.01), 1..40),
            share in 0.0f64..1.0,
            more in 0u64..1 << 34,
        ) {
            let items: Vec<Item> = raw.into_iter().map(|(bytes, saves)| Item { bytes, saves }).collect();
            let total: u64 = items.iter().map(|item| item.bytes).sum();
            let budget = (total as f64 * share) as u64;
            let (less, more) = (choose(&items, budget), choose(&items, budget + more));
            prop_assert!(spent(&items, &less) <= budget);
            // The order of additions differs.
            prop_assert!(saved(&items, &less) <= saved(&items, &more) * (1.0 + 1e-12));
        }
    }

    #[test]
    fn all_is_bought_with_enough_and_nothing_useless_ever() {
        let items =
            [Item { bytes: 5, saves: 1.0 }, Item { bytes: 1, saves: 0.0 }, Item { bytes: 7, saves: 2.0 }];
        assert_eq!(choose(&items, 100), [true, false, true]);
        assert_eq!(choose(&items, 11), [false, false, true]);
        assert_eq!(choose(&items, 0), [false; 3]);
        assert_eq!(choose(&[], 10), [false; 0]);
    }
}

//! Plans kept for shapes that come again.

use std::sync::{Arc, Mutex};

use super::{MatmulPlan, PlanError, PlanOptions};
use crate::shape::MatmulShape;

/// A bounded cache of plans; the one unused for longest makes room.
#[derive(Debug)]
pub struct PlanCache {
    capacity: usize,
    /// Most recently used last.
    plans: Mutex<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    shape: MatmulShape,
    options: PlanOptions,
    plan: Arc<MatmulPlan>,
}

impl PlanCache {
    /// A cache of at most `capacity` plans (at least one).
    pub fn new(capacity: usize) -> Self {
        PlanCache { capacity: capacity.max(1), plans: Mutex::new(Vec::new()) }
    }

    /// The plan of a shape, made now or earlier.
    pub fn plan(&self, shape: MatmulShape, options: &PlanOptions) -> Result<Arc<MatmulPlan>, PlanError> {
        // A plan is built before it is put in, so a panic elsewhere cannot leave a half-made one behind the
        // lock.
        let mut plans = self.plans.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(at) = plans.iter().position(|entry| entry.shape == shape && entry.options == *options) {
            let entry = plans.remove(at);
            let plan = Arc::clone(&entry.plan);
            plans.push(entry);
            return Ok(plan);
        }
        let plan = Arc::new(MatmulPlan::new(shape, options)?);
        if plans.len() == self.capacity {
            plans.remove(0);
        }
        plans.push(Entry { shape, options: options.clone(), plan: Arc::clone(&plan) });
        Ok(plan)
    }

    /// Plans held now.
    pub fn len(&self) -> usize {
        self.plans.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

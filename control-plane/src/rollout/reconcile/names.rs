//! What the router goes by: names of versions, what gateways are, and which versions roll-outs have brought.

use std::collections::BTreeMap;

use crate::{
    domain::{ModelNames, NameTable, Traits},
    store::{Admission, StoreError},
};

use super::{super::snapshot::Snapshot, Reconciler};

/// A gateway that is hotter may soon be slower, degrees Celsius.
const HOT: f64 = 85.0;

impl Reconciler {
    pub(super) async fn refresh_names(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let mut models: BTreeMap<_, ModelNames> = BTreeMap::new();
        for version in self.shared.store.versions(None).await? {
            let names = models.entry(version.model).or_default();
            names.aliases.extend(version.aliases.into_iter().map(|alias| (alias, version.digest.clone())));
            names.versions.insert(version.version, version.digest);
        }
        // Whatever gateways were told to serve answers for the plain name, so that a wave gets its share of requests, and
        // the last gateway with the version before does not get all.
        for (model, names) in &mut models {
            names.moving.extend(snapshot.assigned(model).cloned());
        }
        self.shared.fleet.set_names(NameTable::new(models));
        let traits = snapshot.views.iter().map(|view| {
            let drained = match view.record.admission {
                Admission::Drained => true,
                Admission::Open | Admission::Cordoned => false,
            };
            let hot = view.facts.celsius.is_some_and(|celsius| celsius > HOT);
            (view.record.id.clone(), Traits { labels: view.labels.clone(), drained, hot })
        });
        self.shared.fleet.set_traits(traits.collect());
        Ok(())
    }
}

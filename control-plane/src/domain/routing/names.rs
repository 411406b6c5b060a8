//! What the names in requests stand for: models, their versions, and the aliases that point at versions.
//!
//! ```text
//!  model            the alias "stable" and what roll-outs bring, else whatever serves that name
//!  model@NAME       the version of the alias NAME, else the version NAME
//!  model@sha256:…   that version; so does sha256:… by itself
//!  (empty)          the only model that is served
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{AliasName, Digest, ModelName, VersionName};

/// The alias that a plain name means, where it is set.
pub const STABLE: &str = "stable";

/// What the store knows of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelNames {
    /// Versions by name.
    pub versions: BTreeMap<VersionName, Digest>,
    /// Where aliases point.
    pub aliases: BTreeMap<AliasName, Digest>,
    /// Versions between which roll-outs that are not over move gateways: requests for the plain name go to all of
    /// them, each getting as much as the gateways that serve it have room for.
    pub moving: BTreeSet<Digest>,
}

/// The view of names that requests are resolved by. Empty where nothing was pushed: then names are what gateways report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameTable {
    models: BTreeMap<ModelName, ModelNames>,
    digests: BTreeSet<Digest>,
}

/// Which of the versions that gateways serve a request may go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The only model that is served.
    Only,
    /// Any version that gateways report under this name, or that the table has under it: these.
    Named(String, BTreeSet<Digest>),
    /// These versions; if none of them is served, what [`NameTable::whatever`] gives for the name.
    Preferred(String, BTreeSet<Digest>),
    /// This version and nothing else.
    Exactly(String),
}

/// A model has no such version or alias.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("model {model:?} has no version or alias {name:?}")]
pub struct UnknownVersion {
    /// The model.
    pub model: String,
    /// What was asked for.
    pub name: String,
    /// What there is: aliases, then versions.
    pub available: Vec<String>,
}

impl NameTable {
    /// A table of these models.
    pub fn new(models: BTreeMap<ModelName, ModelNames>) -> Self {
        let known =
            |names: &ModelNames| names.versions.values().chain(names.aliases.values()).cloned().collect();
        let digests = models.values().flat_map::<Vec<Digest>, _>(known).collect();
        Self { models, digests }
    }

    /// Whether the store has a model of that name.
    pub fn has(&self, model: &str) -> bool {
        model.parse().is_ok_and(|model: ModelName| self.models.contains_key(&model))
    }

    /// Whether the store has that version, under whatever name.
    pub fn knows(&self, digest: &str) -> bool {
        digest.parse().is_ok_and(|digest: Digest| self.digests.contains(&digest))
    }

    /// Any version of that name.
    pub fn whatever(&self, model: &str) -> Target {
        let names = model.parse().ok().and_then(|model: ModelName| self.models.get(&model));
        let digests = names.map(|names| names.versions.values().cloned().collect()).unwrap_or_default();
        Target::Named(model.to_owned(), digests)
    }

    /// What the name in a request means.
    ///
    /// # Errors
    /// When the part after `@` is nothing that the model has.
    pub fn resolve(&self, text: &str) -> Result<Target, UnknownVersion> {
        if text.is_empty() {
            return Ok(Target::Only);
        }
        if text.starts_with(DIGEST) {
            return Ok(Target::Exactly(text.to_owned()));
        }
        let Some((model, name)) = text.rsplit_once('@') else { return Ok(self.plain(text)) };
        if name.starts_with(DIGEST) {
            return Ok(Target::Exactly(name.to_owned()));
        }
        let names = model.parse().ok().and_then(|model: ModelName| self.models.get(&model));
        let alias = || names?.aliases.get(&name.parse::<AliasName>().ok()?);
        let version = || names?.versions.get(&name.parse::<VersionName>().ok()?);
        match alias().or_else(version) {
            Some(digest) => Ok(Target::Exactly(digest.as_str().to_owned())),
            None => Err(UnknownVersion {
                model: model.to_owned(),
                name: name.to_owned(),
                available: names.map(available).unwrap_or_default(),
            }),
        }
    }

    fn plain(&self, model: &str) -> Target {
        let stable = || {
            let names = self.models.get(&model.parse::<ModelName>().ok()?)?;
            let stable = names.aliases.get(&STABLE.parse::<AliasName>().ok()?)?;
            Some(names.moving.iter().chain([stable]).cloned().collect())
        };
        match stable() {
            Some(digests) => Target::Preferred(model.to_owned(), digests),
            None => self.whatever(model),
        }
    }
}

const DIGEST: &str = "sha256:";

fn available(names: &ModelNames) -> Vec<String> {
    let aliases = names.aliases.keys().map(|name| name.as_str().to_owned());
    aliases.chain(names.versions.keys().map(|name| name.as_str().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: char) -> Digest {
        format!("sha256:{}", letter.to_string().repeat(64)).parse().unwrap()
    }

    fn table() -> NameTable {
        let names = ModelNames {
            versions: [("1".parse().unwrap(), digest('a')), ("2".parse().unwrap(), digest('b'))].into(),
            aliases: [("canary".parse().unwrap(), digest('b'))].into(),
            moving: BTreeSet::new(),
        };
        NameTable::new([("org/m".parse().unwrap(), names)].into())
    }

    fn exactly(letter: char) -> Result<Target, UnknownVersion> {
        Ok(Target::Exactly(digest(letter).as_str().to_owned()))
    }

    #[test]
    fn names_stand_for_versions() {
        let table = table();
        assert_eq!(table.resolve(""), Ok(Target::Only));
        let all = [digest('a'), digest('b')].into();
        assert_eq!(table.resolve("org/m"), Ok(Target::Named("org/m".into(), all)));
        assert_eq!(table.resolve("x"), Ok(Target::Named("x".into(), BTreeSet::new())));
        assert_eq!(table.resolve("org/m@1"), exactly('a'));
        assert_eq!(table.resolve("org/m@canary"), exactly('b'));
        assert_eq!(table.resolve(&format!("org/m@{}", digest('c').as_str())), exactly('c'));
        assert_eq!(table.resolve(digest('c').as_str()), exactly('c'));
        let unknown = table.resolve("org/m@3").unwrap_err();
        assert_eq!(unknown.available, ["canary", "1", "2"]);
        assert!(table.resolve("x@1").unwrap_err().available.is_empty());
        assert!(table.knows(digest('b').as_str()) && !table.knows(digest('c').as_str()));
    }

    #[test]
    fn a_plain_name_prefers_stable_and_what_is_moving() {
        let mut names = table().models.pop_first().unwrap().1;
        names.aliases.insert(STABLE.parse().unwrap(), digest('a'));
        let resolve = |names: &ModelNames| {
            NameTable::new([("m".parse().unwrap(), names.clone())].into()).resolve("m").unwrap()
        };
        assert_eq!(resolve(&names), Target::Preferred("m".into(), [digest('a')].into()));
        names.moving.insert(digest('b'));
        assert_eq!(resolve(&names), Target::Preferred("m".into(), [digest('a'), digest('b')].into()));
    }
}

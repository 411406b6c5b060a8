use proptest::prelude::*;

use super::*;
use crate::domain::ModelLoad;

fn id(name: &str) -> GatewayId {
    name.parse().unwrap()
}

fn serving(names: &[&str]) -> GatewayState {
    let load = |name: &&str| {
        let model = Model {
            name: (*name).to_owned(),
            digest: "sha256:00".into(),
            architecture: "llama".into(),
            recipe: "w8".into(),
            parameters: 1,
            context_tokens: 64,
            vocabulary: 10,
        };
        let load = ModelLoad {
            model,
            running: 0,
            queued: 0,
            queued_tokens: 0,
            free_blocks: 4,
            backend: "cpu/scalar".into(),
            degraded: None,
        };
        ((*name).to_owned(), load)
    };
    GatewayState { accepting: true, models: names.iter().map(load).collect() }
}

#[test]
fn a_newer_link_replaces_the_older_and_outlives_its_end() {
    let mut registry = Registry::default();
    let (old, replaced) = registry.link(id("a"), "first", serving(&["m"]));
    assert_eq!(replaced, None);
    let (new, replaced) = registry.link(id("a"), "second", serving(&["m"]));
    assert_eq!(replaced, Some("first"));
    assert!(!registry.unlink(&id("a"), old));
    assert!(!registry.update(&id("a"), old, GatewayState::default()));
    assert_eq!(registry.reserve("m", None, &[], 0).unwrap().connection, "second");
    assert!(registry.unlink(&id("a"), new));
    assert_eq!(registry.reserve("m", None, &[], 0), Err(NoRoute::NoneLive));
}

#[test]
fn reservations_spread_before_any_report_comes() {
    let mut registry = Registry::default();
    for name in ["a", "b", "c"] {
        registry.link(id(name), (), serving(&["m"]));
    }
    let mut seen: Vec<_> =
        (0..6).map(|random| registry.reserve("m", None, &[], random).unwrap().gateway).collect();
    seen.sort();
    assert_eq!(seen, ["a", "a", "b", "b", "c", "c"].map(id));
}

#[test]
fn names_are_resolved_or_refused_with_what_there_is() {
    let mut registry = Registry::default();
    assert_eq!(registry.reserve("m", None, &[], 0), Err(NoRoute::NoneLive), "nobody has dialled yet");
    assert_eq!(registry.reserve("", None, &[], 0), Err(NoRoute::NoneLive));
    let (link, _) = registry.link(id("a"), (), serving(&["m"]));
    assert_eq!(registry.reserve("", None, &[], 0).unwrap().gateway, id("a"));
    let unknown = NoRoute::UnknownModel { available: vec!["m".into()] };
    assert_eq!(registry.reserve("x", None, &[], 0), Err(unknown));
    registry.link(id("b"), (), serving(&["m", "n"]));
    let ambiguous = NoRoute::Ambiguous { available: vec!["m".into(), "n".into()] };
    assert_eq!(registry.reserve("", None, &[], 0), Err(ambiguous));
    assert_eq!(
        registry.models().iter().map(|served| (&*served.model.name, served.gateways)).collect::<Vec<_>>(),
        [("m", 2), ("n", 1)]
    );
    let draining = GatewayState { accepting: false, ..serving(&["m", "n"]) };
    let (b, _) = registry.link(id("b"), (), draining);
    assert_eq!(registry.reserve("n", None, &[], 0), Err(NoRoute::NoneLive), "known, but leaving");
    assert_eq!(registry.reserve("m", None, &[link], 0), Err(NoRoute::AllTried), "tried already");
    registry.unlink(&id("b"), b);
}

#[test]
fn degraded_gateways_of_a_model_are_counted_and_the_first_says_why() {
    let mut registry = Registry::default();
    registry.link(id("a"), (), serving(&["m"]));
    for name in ["c", "b"] {
        let mut state = serving(&["m", "n"]);
        let load = state.models.get_mut("m").unwrap();
        (load.backend, load.degraded) = ("npu/vendor".into(), Some(format!("{name} is hot")));
        registry.link(id(name), (), state);
    }
    let models = registry.models();
    let [m, n] = &models[..] else { panic!("{models:?}") };
    assert_eq!((m.gateways, m.degraded_gateways), (3, 2));
    assert_eq!(m.degraded, Some((id("b"), "b is hot".into())));
    assert_eq!(m.backends, ["cpu/scalar", "npu/vendor"].map(str::to_owned).into());
    assert_eq!((n.gateways, n.degraded_gateways, &n.degraded), (2, 0, &None));
    let leaving = GatewayState { accepting: false, ..serving(&["m"]) };
    registry.link(id("b"), (), leaving);
    assert_eq!(registry.models()[0].degraded, Some((id("c"), "c is hot".into())));
}

#[test]
fn a_served_model_is_found_however_many_names_there_were() {
    let mut registry = Registry::default();
    let names: Vec<_> = (0..MOST_KNOWN_MODELS).map(|n| format!("old-{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let (link, _) = registry.link(id("a"), (), serving(&names));
    assert!(registry.update(&id("a"), link, serving(&["new"])));
    assert_eq!(registry.reserve("new", None, &[], 0).unwrap().gateway, id("a"));
    assert_eq!(registry.reserve("old-0", None, &[], 0), Err(NoRoute::NoneLive));
}

#[derive(Clone, Debug)]
enum Step {
    Link(u8),
    Unlink(u8),
    Reserve(u64),
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8).prop_map(Step::Link),
        (0..4u8).prop_map(Step::Unlink),
        any::<u64>().prop_map(Step::Reserve),
        (0..8usize).prop_map(Step::Release),
    ]
}

proptest! {
    /// Against a shadow model: what is in flight on a link is what was reserved on it and not released.
    #[test]
    fn in_flight_counts_are_exact(steps in prop::collection::vec(step(), 0..200)) {
        let mut registry = Registry::default();
        let mut links: BTreeMap<GatewayId, LinkId> = BTreeMap::new();
        let mut held: Vec<(GatewayId, LinkId)> = Vec::new();
        for step in steps {
            match step {
                Step::Link(n) => {
                    let gateway = id(&format!("g{n}"));
                    let (link, replaced) = registry.link(gateway.clone(), n, serving(&["m"]));
                    prop_assert_eq!(replaced.is_some(), links.insert(gateway, link).is_some());
                }
                Step::Unlink(n) => {
                    let gateway = id(&format!("g{n}"));
                    if let Some(link) = links.remove(&gateway) {
                        prop_assert!(registry.unlink(&gateway, link));
                    }
                }
                Step::Reserve(random) => match registry.reserve("m", None, &[], random) {
                    Ok(reservation) => held.push((reservation.gateway, reservation.link)),
                    Err(_) => prop_assert!(links.is_empty()),
                },
                Step::Release(n) if n < held.len() => {
                    let (gateway, link) = held.swap_remove(n);
                    registry.release(&gateway, link);
                }
                Step::Release(_) => {}
            }
            for (gateway, in_flight, _) in registry.gateways() {
                let expected = held.iter().filter(|(g, link)| g == gateway && links.get(g) == Some(link)).count();
                prop_assert_eq!(in_flight, expected as u64);
            }
        }
    }
}

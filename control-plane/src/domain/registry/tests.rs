use proptest::prelude::*;

use super::*;
use crate::domain::{Digest, Model, ModelLoad, ModelNames};

pub(super) fn id(name: &str) -> GatewayId {
    name.parse().unwrap()
}

pub(super) fn load(name: &str, digest: &str) -> ModelLoad {
    let model = Model {
        name: name.to_owned(),
        digest: digest.to_owned(),
        architecture: "llama".into(),
        recipe: "w8".into(),
        parameters: 1,
        context_tokens: 64,
        vocabulary: 10,
    };
    ModelLoad {
        model,
        running: 0,
        queued: 0,
        queued_tokens: 0,
        free_blocks: 4,
        backend: "cpu/scalar".into(),
        degraded: None,
    }
}

pub(super) fn state(loads: impl IntoIterator<Item = ModelLoad>) -> GatewayState {
    let mut state = GatewayState::new(true);
    loads.into_iter().for_each(|load| assert!(state.add(load)));
    state
}

pub(super) fn serving(names: &[&str]) -> GatewayState {
    state(names.iter().map(|name| load(name, "sha256:00")))
}

fn digest(letter: char) -> Digest {
    format!("sha256:{}", letter.to_string().repeat(64)).parse().unwrap()
}

/// A request for `model` and nothing else.
pub(super) fn query<'a>(model: &'a str, tried: &'a [LinkId], random: u64, now: Instant) -> Query<'a> {
    static NOTHING: (Labels, Prompt) = (Labels::new(), Prompt::NOTHING);
    let (labels, prompt) = (&NOTHING.0, &NOTHING.1);
    Query { model, digest: None, labels, session: None, prompt, tried, random, now }
}

fn reserve<C: Clone>(
    registry: &mut Registry<C>,
    model: &str,
    tried: &[LinkId],
    random: u64,
) -> Result<Reservation<C>, NoRoute> {
    registry.reserve(&query(model, tried, random, Instant::now()))
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
    assert_eq!(reserve(&mut registry, "m", &[], 0).unwrap().connection, "second");
    assert!(registry.unlink(&id("a"), new));
    assert_eq!(reserve(&mut registry, "m", &[], 0), Err(NoRoute::NoneLive));
}

#[test]
fn reservations_spread_before_any_report_comes() {
    let mut registry = Registry::default();
    for name in ["a", "b", "c"] {
        registry.link(id(name), (), serving(&["m"]));
    }
    let mut seen: Vec<_> =
        (0..6).map(|random| reserve(&mut registry, "m", &[], random).unwrap().gateway).collect();
    seen.sort();
    assert_eq!(seen, ["a", "a", "b", "b", "c", "c"].map(id));
}

#[test]
fn names_are_resolved_or_refused_with_what_there_is() {
    let mut registry = Registry::default();
    assert_eq!(reserve(&mut registry, "m", &[], 0), Err(NoRoute::NoneLive), "nobody has dialled yet");
    assert_eq!(reserve(&mut registry, "", &[], 0), Err(NoRoute::NoneLive));
    let (link, _) = registry.link(id("a"), (), serving(&["m"]));
    assert_eq!(reserve(&mut registry, "", &[], 0).unwrap().gateway, id("a"));
    let unknown = NoRoute::UnknownModel { available: vec!["m".into()] };
    assert_eq!(reserve(&mut registry, "x", &[], 0), Err(unknown));
    registry.link(id("b"), (), serving(&["m", "n"]));
    let ambiguous = NoRoute::Ambiguous { available: vec!["m".into(), "n".into()] };
    assert_eq!(reserve(&mut registry, "", &[], 0), Err(ambiguous));
    assert_eq!(
        registry.models().iter().map(|served| (&*served.model.name, served.gateways)).collect::<Vec<_>>(),
        [("m", 2), ("n", 1)]
    );
    let mut draining = serving(&["m", "n"]);
    draining.accepting = false;
    let (b, _) = registry.link(id("b"), (), draining);
    assert_eq!(reserve(&mut registry, "n", &[], 0), Err(NoRoute::NoneLive), "known, but leaving");
    assert_eq!(reserve(&mut registry, "m", &[link], 0), Err(NoRoute::AllTried), "tried already");
    registry.unlink(&id("b"), b);
}

#[test]
fn degraded_gateways_of_a_model_are_counted_and_the_first_says_why() {
    let mut registry = Registry::default();
    registry.link(id("a"), (), serving(&["m"]));
    for name in ["c", "b"] {
        let mut hot = load("m", "sha256:00");
        (hot.backend, hot.degraded) = ("npu/vendor".into(), Some(format!("{name} is hot")));
        registry.link(id(name), (), state([hot, load("n", "sha256:00")]));
    }
    let models = registry.models();
    let [m, n] = &models[..] else { panic!("{models:?}") };
    assert_eq!((m.gateways, m.degraded_gateways), (3, 2));
    assert_eq!(m.degraded, Some((id("b"), "b is hot".into())));
    assert_eq!(m.backends, ["cpu/scalar", "npu/vendor"].map(str::to_owned).into());
    assert_eq!((n.gateways, n.degraded_gateways, &n.degraded), (2, 0, &None));
    let mut leaving = serving(&["m"]);
    leaving.accepting = false;
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
    assert_eq!(reserve(&mut registry, "new", &[], 0).unwrap().gateway, id("a"));
    assert_eq!(reserve(&mut registry, "old-0", &[], 0), Err(NoRoute::NoneLive));
}

#[test]
fn versions_of_a_model_are_told_apart() {
    let (a, b) = (digest('a'), digest('b'));
    let mut registry = Registry::default();
    registry.link(id("old"), (), state([load("m", a.as_str())]));
    registry.link(id("both"), (), state([load("m", a.as_str()), load("m", b.as_str())]));
    let gateways = |registry: &mut Registry<()>, model: &str| -> BTreeSet<(String, String)> {
        let all = (0..64).map(|random| {
            let mut reservation = reserve(registry, model, &[], super::super::routing::mix(random)).unwrap();
            registry.release(&mut reservation);
            (reservation.gateway.to_string(), reservation.model)
        });
        all.collect()
    };
    let pair = |gateway: &str, model: &str| (gateway.to_owned(), model.to_owned());
    // Where a gateway has one version of that name, the name will do.
    let plain = [pair("old", "m"), pair("both", a.as_str()), pair("both", b.as_str())];
    assert_eq!(gateways(&mut registry, "m"), plain.into());
    let exactly = [pair("both", b.as_str())];
    assert_eq!(gateways(&mut registry, &format!("m@{}", b.as_str())), exactly.clone().into());
    let names = |stable: Option<&Digest>, moving: &[&Digest]| {
        let names = ModelNames {
            versions: [("1".parse().unwrap(), a.clone()), ("2".parse().unwrap(), b.clone())].into(),
            aliases: stable.map(|digest| ("stable".parse().unwrap(), digest.clone())).into_iter().collect(),
            moving: moving.iter().map(|&digest| digest.clone()).collect(),
        };
        NameTable::new([("m".parse().unwrap(), names)].into())
    };
    assert!(registry.set_names(names(Some(&b), &[])) && !registry.set_names(names(Some(&b), &[])));
    assert_eq!(gateways(&mut registry, "m"), exactly.clone().into());
    assert_eq!(gateways(&mut registry, ""), exactly.clone().into());
    assert_eq!(gateways(&mut registry, "m@2"), exactly.into());
    registry.set_names(names(Some(&b), &[&a]));
    let waves = [pair("old", a.as_str()), pair("both", a.as_str()), pair("both", b.as_str())];
    assert_eq!(gateways(&mut registry, "m"), waves.into());
    // Nobody serves what is stable: what serves is better than nothing, unless the request insists.
    registry.set_names(names(Some(&digest('c')), &[]));
    assert_eq!(gateways(&mut registry, "m").len(), 3);
    assert_eq!(reserve(&mut registry, "m@stable", &[], 0), Err(NoRoute::NoneLive));
    let unknown = reserve(&mut registry, "m@3", &[], 0);
    assert!(matches!(unknown, Err(NoRoute::UnknownVersion(_))), "{unknown:?}");
    let unknown = reserve(&mut registry, "x@3", &[], 0);
    assert_eq!(unknown, Err(NoRoute::UnknownModel { available: vec!["m".into()] }));
}

#[test]
fn drained_gateways_and_others_labels_are_left_out() {
    let mut registry = Registry::default();
    for name in ["a", "b"] {
        registry.link(id(name), (), serving(&["m"]));
    }
    let berlin = Traits { labels: [("site".into(), "berlin".into())].into(), ..Traits::default() };
    registry.set_traits([(id("a"), berlin.clone())].into());
    let ask = |registry: &mut Registry<()>, name: &str, value: &str| {
        let labels = [(name.to_owned(), value.to_owned())].into();
        let query = Query { labels: &labels, ..query("m", &[], 0, Instant::now()) };
        registry.reserve(&query).map(|reservation| reservation.gateway)
    };
    assert_eq!(ask(&mut registry, "site", "berlin"), Ok(id("a")));
    assert_eq!(ask(&mut registry, "id", "b"), Ok(id("b")));
    assert_eq!(ask(&mut registry, "site", "bonn"), Err(NoRoute::NoneLive));
    registry.set_traits([(id("a"), Traits { drained: true, ..berlin })].into());
    assert_eq!(ask(&mut registry, "site", "berlin"), Err(NoRoute::NoneLive));
    for random in 0..8 {
        assert_eq!(reserve(&mut registry, "m", &[], random).unwrap().gateway, id("b"));
    }
}

#[test]
fn a_prompt_goes_where_its_beginning_was_read() {
    let mut registry = Registry::default();
    for name in ["a", "b", "c", "d"] {
        registry.link(id(name), (), serving(&["m"]));
    }
    let now = Instant::now();
    let mut homes = BTreeMap::new();
    for round in 0..5 {
        for group in 0..12u32 {
            let mut ids = vec![group; 160];
            ids.extend([1000 + round; 32]);
            let prompt = Prompt::of_ids(&ids);
            let query = Query { prompt: &prompt, ..query("m", &[], u64::from(round), now) };
            let mut reservation = registry.reserve(&query).unwrap();
            let home = homes.entry(group).or_insert_with(|| reservation.gateway.clone());
            assert_eq!(*home, reservation.gateway, "group {group}, round {round}");
            registry.begun(&mut reservation);
            registry.release(&mut reservation);
        }
    }
    let mut groups = BTreeMap::<_, u32>::new();
    homes.values().for_each(|home| *groups.entry(home).or_default() += 1);
    assert_eq!(
        groups.into_values().collect::<Vec<_>>(),
        [3; 4],
        "beginnings are spread by what was to be read"
    );
}

#[test]
fn prompts_that_wait_count_before_any_report_comes() {
    let mut registry = Registry::default();
    registry.link(id("a"), (), serving(&["m"]));
    registry.link(id("b"), (), serving(&["m"]));
    let (long, short, now) = (Prompt::of_ids(&[1; 500]), Prompt::of_ids(&[2; 10]), Instant::now());
    let mut first = registry.reserve(&Query { prompt: &long, ..query("m", &[], 0, now) }).unwrap();
    let second = registry.reserve(&Query { prompt: &short, ..query("m", &[], 0, now) }).unwrap();
    assert_ne!(first.gateway, second.gateway);
    let third = registry.reserve(&Query { prompt: &short, ..query("m", &[], 0, now) }).unwrap();
    assert_eq!(third.gateway, second.gateway, "one generation each, but more tokens wait at the first");
    registry.begun(&mut first);
    let fourth = registry.reserve(&Query { prompt: &short, ..query("m", &[], 0, now) }).unwrap();
    assert_eq!(fourth.gateway, first.gateway);
}

#[test]
fn a_gateway_that_fails_again_and_again_is_left_alone_and_tried_by_one() {
    use crate::domain::routing::breaker::{FAILURES, SHORTEST};
    let mut registry = Registry::default();
    registry.link(id("bad"), (), serving(&["m"]));
    let now = Instant::now();
    let fail = |registry: &mut Registry<()>, now| {
        let mut reservation = registry.reserve(&query("m", &[], 0, now)).unwrap();
        registry.failed(&reservation, now);
        registry.release(&mut reservation)
    };
    (0..FAILURES).for_each(|_| assert!(!fail(&mut registry, now)));
    assert!(fail(&mut registry, now), "it is all there is, so it is tried, by one at a time");
    let mut trying = registry.reserve(&query("m", &[], 0, now)).unwrap();
    assert_eq!(registry.reserve(&query("m", &[], 0, now)), Err(NoRoute::NoneLive));
    registry.release(&mut trying);
    registry.link(id("good"), (), serving(&["m"]));
    let held: Vec<_> =
        (0..8).map(|random| registry.reserve(&query("m", &[], random, now)).unwrap()).collect();
    assert!(held.iter().all(|reservation| reservation.gateway == id("good")));
    let later = now + SHORTEST * 4;
    let mut trying = registry.reserve(&query("m", &[], 0, later)).unwrap();
    assert_eq!(trying.gateway, id("bad"), "a real request tries it");
    assert_eq!(registry.reserve(&query("m", &[], 0, later)).unwrap().gateway, id("good"), "and no other");
    registry.begun(&mut trying);
    registry.release(&mut trying);
    let gateways: BTreeSet<_> =
        (0..4).map(|random| registry.reserve(&query("m", &[], random, later)).unwrap().gateway).collect();
    assert!(gateways.contains(&id("bad")));
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
        let mut held: Vec<Reservation<u8>> = Vec::new();
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
                Step::Reserve(random) => match reserve(&mut registry, "m", &[], random) {
                    Ok(reservation) => held.push(reservation),
                    Err(_) => prop_assert!(links.is_empty()),
                },
                Step::Release(n) if n < held.len() => {
                    registry.release(&mut held.swap_remove(n));
                }
                Step::Release(_) => {}
            }
            for (gateway, in_flight, _) in registry.gateways() {
                let expected = held.iter().filter(|r| r.gateway == *gateway && links.get(gateway) == Some(&r.link)).count();
                prop_assert_eq!(in_flight, expected as u64);
            }
        }
    }
}

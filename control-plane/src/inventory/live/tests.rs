use super::*;

const NOW: Millis = Millis(1_000_000);

fn id(name: &str) -> GatewayId {
    name.parse().unwrap()
}

fn digest(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

fn status(phase: v1::Phase, celsius: f64) -> v1::GatewayStatus {
    let facts = v1::GatewayFacts { board: "b".into(), celsius: Some(celsius), ..Default::default() };
    let version = v1::VersionStatus {
        model: "m".into(),
        digest: digest('a'),
        phase: phase.into(),
        ..Default::default()
    };
    v1::GatewayStatus { facts: Some(facts), versions: vec![version], ..Default::default() }
}

fn transition(sequence: u64) -> v1::Transition {
    v1::Transition {
        sequence,
        model: "m".into(),
        digest: digest('a'),
        to: v1::Phase::Serving.into(),
        ..Default::default()
    }
}

fn save(live: &mut Live, saved: &Saved, now: Millis) -> Work {
    let work = live.next_work().unwrap();
    live.saved(&work, saved, now);
    assert_eq!(live.next_work(), None);
    work
}

#[test]
fn two_thousand_heartbeats_cost_the_store_nothing_for_a_minute() {
    let mut live = Live::default();
    for gateway in 0..2000 {
        live.link(&id(&format!("gw-{gateway}")), &status(v1::Phase::Serving, 50.0), NOW);
    }
    let mut works = 0;
    while let Some(work) = live.next_work() {
        assert!(work.link && work.report.is_some());
        live.saved(&work, &Saved { epoch: Some(1), ..Saved::default() }, NOW);
        works += 1;
    }
    assert_eq!(works, 2000);
    for second in 1..=59 {
        let now = NOW.after(Duration::from_secs(second));
        for gateway in 0..2000 {
            let warmer = status(v1::Phase::Serving, 50.0 + second as f64);
            assert!(!live.status(&id(&format!("gw-{gateway}")), &warmer, now));
        }
        assert_eq!(live.next_work(), None, "second {second}");
    }
    let minute = NOW.after(Duration::from_secs(60));
    live.status(&id("gw-7"), &status(v1::Phase::Serving, 51.0), minute);
    assert!(live.next_work().unwrap().report.is_some());
}

#[test]
fn what_changes_is_saved_and_told() {
    let mut live = Live::default();
    let gw = id("gw");
    live.link(&gw, &status(v1::Phase::Downloading, 50.0), NOW);
    save(&mut live, &Saved { epoch: Some(3), ..Saved::default() }, NOW);
    assert!(live.status(&gw, &status(v1::Phase::Verifying, 50.0), NOW));
    let work = save(&mut live, &Saved::default(), NOW);
    assert_eq!(work.report.unwrap().versions[0].phase, report::Phase::Verifying);
    // Facts are left out while they are the same.
    let bare = v1::GatewayStatus { facts: None, ..status(v1::Phase::Verifying, 0.0) };
    assert!(!live.status(&gw, &bare, NOW));
    assert_eq!(live.here(&gw).unwrap().report.facts.board, "b");
}

#[test]
fn transitions_are_saved_once_and_acknowledged() {
    let mut live = Live::default();
    let gw = id("gw");
    let mut told = status(v1::Phase::Serving, 50.0);
    told.generation = 4;
    told.transitions = vec![transition(1), transition(2)];
    live.link(&gw, &told, NOW);
    let work = live.next_work().unwrap();
    assert_eq!(work.transitions.iter().map(|transition| transition.sequence).collect::<Vec<_>>(), [1, 2]);
    // It goes on telling them, and one more, while the store writes.
    told.transitions.push(transition(3));
    assert!(live.status(&gw, &told, NOW));
    let saved = Saved { epoch: Some(1), acknowledged: Some(2), generation: Some(4) };
    live.saved(&work, &saved, NOW);
    assert_eq!(live.due(&gw, NOW), Some(2), "an acknowledgement is due though the generation is the same");
    let work = save(&mut live, &Saved { acknowledged: Some(3), ..Saved::default() }, NOW);
    assert_eq!(work.transitions.iter().map(|transition| transition.sequence).collect::<Vec<_>>(), [3]);
    live.sent(&gw, 4, 3, NOW);
    assert_eq!(live.due(&gw, NOW), None);
    assert_eq!(live.due(&gw, NOW.after(SEND_AGAIN)), Some(3), "sent again if nothing came of it");
    told.transitions.clear();
    live.status(&gw, &told, NOW);
    assert_eq!(live.due(&gw, NOW.after(SEND_AGAIN)), None);
}

#[test]
fn an_assignment_is_due_until_the_gateway_holds_it() {
    let mut live = Live::default();
    let gw = id("gw");
    live.link(&gw, &status(v1::Phase::Serving, 50.0), NOW);
    assert_eq!(live.due(&gw, NOW), None);
    assert!(live.set_wanted([(gw.clone(), 5)].into(), NOW, NOW));
    assert!(!live.set_wanted([(gw.clone(), 5)].into(), NOW, NOW));
    assert_eq!(live.due(&gw, NOW), Some(0));
    live.sent(&gw, 5, 0, NOW);
    assert_eq!(live.due(&gw, NOW), None);
    live.set_wanted([(gw.clone(), 6)].into(), NOW, NOW);
    assert_eq!(live.due(&gw, NOW), Some(0), "a newer one does not wait for the older");
    live.sent(&gw, 6, 0, NOW);
    live.refused(&gw, 6, NOW);
    assert_eq!(live.due(&gw, NOW), None);
    assert_eq!(live.due(&gw, NOW.after(SEND_AGAIN)), Some(0));
    let mut holds = status(v1::Phase::Downloading, 50.0);
    holds.generation = 6;
    live.status(&gw, &holds, NOW);
    assert_eq!(live.due(&gw, NOW.after(SEND_AGAIN)), None);
}

#[test]
fn a_removed_gateway_is_told_so_and_saved_no_more() {
    let mut live = Live::default();
    let gw = id("gw");
    let ticket = live.link(&gw, &status(v1::Phase::Serving, 50.0), NOW);
    live.set_wanted([(id("other"), 1)].into(), NOW, NOW);
    assert!(!live.session(&gw, ticket).unwrap().1, "its row may be about to be written");
    save(&mut live, &Saved { epoch: Some(1), ..Saved::default() }, NOW);
    live.set_wanted([(id("other"), 2)].into(), NOW, NOW);
    assert!(!live.session(&gw, ticket).unwrap().1, "what was read may be older than its row");
    let later = NOW.after(Duration::from_secs(1));
    assert!(live.set_wanted([(id("other"), 2)].into(), later, later));
    assert!(live.session(&gw, ticket).unwrap().1);
    live.status(&gw, &status(v1::Phase::Failed, 50.0), NOW);
    assert_eq!(live.next_work(), None);
    live.failed(&gw);
    assert_eq!(live.next_work(), None);
}

#[test]
fn a_link_that_ends_while_its_row_is_written_leaves_none() {
    let mut live = Live::default();
    let gw = id("gw");
    let first = live.link(&gw, &status(v1::Phase::Serving, 50.0), NOW);
    let work = live.next_work().unwrap();
    let second = live.link(&gw, &status(v1::Phase::Serving, 50.0), NOW);
    assert!(!live.unlink(&gw, first), "the first one's end does not end the second");
    live.saved(&work, &Saved { epoch: Some(1), ..Saved::default() }, NOW);
    assert_eq!(live.next_ended(), Some((gw.clone(), 1)));
    save(&mut live, &Saved { epoch: Some(2), ..Saved::default() }, NOW);
    assert!(live.unlink(&gw, second));
    assert_eq!((live.next_ended(), live.next_ended()), (Some((gw, 2)), None));
}

#[test]
fn gateways_of_others_come_and_go_with_their_replica() {
    let mut live = Live::default();
    let serving = status(v1::Phase::Serving, 50.0);
    assert!(live.remote("b", &id("gw-1"), &serving));
    assert!(!live.remote("b", &id("gw-1"), &serving));
    assert!(live.remote("c", &id("gw-1"), &serving), "it has moved");
    assert!(!live.remote_lost("b", Some(&id("gw-1"))), "the old replica's loss is old news");
    assert!(live.remote("b", &id("gw-2"), &serving));
    assert!(live.remote_lost("c", None));
    assert!(live.elsewhere(&id("gw-1")).is_none() && live.elsewhere(&id("gw-2")).is_some());
}

#[test]
fn hostile_reports_are_cut_down() {
    let mut live = Live::default();
    let gw = id("gw");
    let mut told = status(v1::Phase::Serving, f64::NAN);
    told.versions[0].reason = format!("a\u{1b}[2J{}", "ä".repeat(1000));
    let same = told.versions[0].clone();
    told.versions.extend((0..1000).map(|_| same.clone()));
    told.versions.push(v1::VersionStatus { digest: "../../etc".into(), ..same });
    told.transitions = (1..1000).map(transition).collect();
    told.transitions[0].digest = "x".into();
    live.link(&gw, &told, NOW);
    let work = live.next_work().unwrap();
    let report = work.report.unwrap();
    assert_eq!((report.versions.len(), work.transitions.len()), (256, 63));
    let reason = &report.versions[0].reason;
    assert!(reason.len() <= 512 && !reason.contains('\u{1b}'));
    assert_eq!(report.facts.celsius, None);
}

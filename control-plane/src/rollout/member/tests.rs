use super::{super::support::*, *};
use crate::domain::rollout::Target as Aim;

const HOUR: i64 = 3_600_000;

fn aim(digest: Option<u32>) -> Aim {
    Aim { digest: digest.map(version), previous: Some(version(1)), wave: 0, since: Millis(0), late: false }
}

fn at(member: &Member, target: &Aim, now: i64) -> Standing {
    let patience = Patience { timeout: Duration::from_secs(7200), grace: Duration::from_secs(60) };
    member.standing(target, &version(2), patience, Millis(now))
}

/// Told to serve a version, and reporting these.
fn told(number: Option<u32>, versions: Vec<Reported>) -> Member {
    let assigned = number.map(|number| Assigned { digest: version(number), generation: 5 });
    Member { assigned, versions, ..member(0) }
}

#[test]
fn where_a_gateway_stands_on_its_way() {
    use Progress::{Coming, Failed, Leaving, Serving, Trying};
    let old = reported(1, Serving, 4);
    for (versions, now, expected) in [
        (vec![old.clone()], HOUR, Standing::Switching),
        (vec![old.clone(), reported(2, Coming, 5)], HOUR, Standing::Switching),
        (vec![old.clone(), reported(2, Trying, 5)], HOUR, Standing::Switching),
        (vec![reported(1, Leaving, 4), reported(2, Serving, 5)], 9 * HOUR, Standing::There),
        (vec![old.clone(), reported(2, Failed, 5)], HOUR, Standing::Failed(String::new())),
        (vec![old.clone(), reported(2, Failed, 4)], HOUR, Standing::Switching),
        (vec![old.clone()], 2 * HOUR, Standing::Failed("is not there after 2h".to_owned())),
    ] {
        assert_eq!(at(&told(Some(2), versions.clone()), &aim(Some(2)), now), expected, "{versions:?}");
    }
}

#[test]
fn where_a_gateway_stands_on_its_way_back() {
    use Progress::{Coming, Failed, Leaving, Serving, Trying};
    let old = reported(1, Serving, 4);
    for (versions, expected) in [
        (vec![old.clone()], Standing::There),
        (vec![old.clone(), reported(2, Failed, 5)], Standing::There),
        (vec![old.clone(), reported(2, Leaving, 5)], Standing::There),
        // It keeps it on disk, and no assignment says so.
        (vec![old.clone(), reported(2, Coming, 0)], Standing::There),
        // It may still switch forward: it has not heard.
        (vec![old.clone(), reported(2, Trying, 5)], Standing::Switching),
        (vec![old.clone(), reported(2, Coming, 5)], Standing::Switching),
        (vec![reported(2, Serving, 5)], Standing::Switching),
    ] {
        assert_eq!(at(&told(Some(1), versions.clone()), &aim(Some(1)), HOUR), expected, "{versions:?}");
    }
    for (versions, expected) in [
        (vec![], Standing::There),
        (vec![reported(2, Failed, 5)], Standing::There),
        (vec![reported(2, Serving, 5)], Standing::Switching),
    ] {
        assert_eq!(at(&told(None, versions.clone()), &aim(None), HOUR), expected, "{versions:?}");
    }
}

#[test]
fn who_is_away_says_nothing() {
    let away = Member { online: false, ..told(Some(2), vec![]) };
    assert_eq!(at(&away, &aim(Some(2)), 30_000), Standing::Switching, "it has only just gone");
    assert_eq!(at(&away, &aim(Some(2)), HOUR), Standing::Away(Away::Offline));
    let closed = Member { open: false, ..told(Some(2), vec![reported(2, Progress::Failed, 5)]) };
    assert_eq!(at(&closed, &aim(Some(2)), HOUR), Standing::Away(Away::Closed));
    assert_eq!(at(&told(Some(3), vec![]), &aim(Some(2)), HOUR), Standing::Away(Away::Lost));
    let back = Member { online_since: Millis(3 * HOUR), ..told(Some(2), vec![]) };
    assert_eq!(at(&back, &aim(Some(2)), 3 * HOUR), Standing::Away(Away::Interrupted));
}

#[test]
fn what_it_goes_back_to_is_what_it_serves() {
    let serving = told(Some(3), vec![reported(3, Progress::Failed, 5), reported(1, Progress::Serving, 4)]);
    assert_eq!(serving.before(&version(2)), Some(version(1)));
    let broken = told(Some(3), vec![reported(3, Progress::Failed, 5)]);
    assert!(!broken.healthy() && broken.before(&version(2)) == Some(version(3)));
    assert_eq!(told(Some(2), vec![reported(2, Progress::Serving, 5)]).before(&version(2)), None);
    assert!(told(None, vec![]).healthy());
}

#[test]
fn durations_are_read_by_people() {
    for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (61, "1m 1s"), (7200, "2h"), (7260, "2h 1m")]
    {
        assert_eq!(words(Duration::from_secs(seconds)), text);
    }
}

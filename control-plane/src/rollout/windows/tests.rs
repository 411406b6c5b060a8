use super::*;

fn at(text: &str) -> Millis {
    Millis(text.parse::<Timestamp>().unwrap().as_millisecond())
}

fn windows(texts: &[&str]) -> Windows {
    Windows::parse(texts).unwrap()
}

#[test]
fn a_window_is_by_the_clock_of_its_zone() {
    let nights = windows(&["Mon-Fri 01:00-05:00 Europe/Berlin"]);
    for (moment, open) in [
        // Monday, 16 November 2026: Berlin is an hour ahead of UTC.
        ("2026-11-15T23:59:59Z", false),
        ("2026-11-16T00:00:00Z", true),
        ("2026-11-16T03:59:59Z", true),
        ("2026-11-16T04:00:00Z", false),
        // Saturday.
        ("2026-11-21T01:00:00Z", false),
        // Summer: two hours ahead.
        ("2026-07-01T22:59:59Z", false),
        ("2026-07-01T23:00:00Z", true),
        ("2026-07-02T03:00:00Z", false),
    ] {
        assert_eq!(nights.open(at(moment)), open, "{moment}");
    }
    assert_eq!(nights.next_open(at("2026-11-20T12:00:00Z")), Some(at("2026-11-23T00:00:00Z")));
}

#[test]
fn over_midnight_it_belongs_to_the_day_on_which_it_begins() {
    let late = windows(&["Fri 22:00-02:00 UTC"]);
    for (moment, open) in [
        ("2026-11-20T21:59:59Z", false),
        ("2026-11-20T22:00:00Z", true),
        ("2026-11-21T01:59:59Z", true),
        ("2026-11-21T02:00:00Z", false),
        ("2026-11-20T01:00:00Z", false),
        ("2026-11-21T23:00:00Z", false),
    ] {
        assert_eq!(late.open(at(moment)), open, "{moment}");
    }
    let day = windows(&["Sun 00:00-24:00 UTC"]);
    assert!(day.open(at("2026-11-22T23:59:59Z")) && !day.open(at("2026-11-23T00:00:00Z")));
}

#[test]
fn where_clocks_change_it_neither_vanishes_nor_doubles() {
    // In Berlin, 29 March 2026 has no 02:00-03:00, and 25 October has it twice.
    let night = windows(&["daily 01:30-03:30 Europe/Berlin"]);
    assert!(!night.open(at("2026-03-29T00:29:59Z")) && night.open(at("2026-03-29T00:30:00Z")));
    assert!(night.open(at("2026-03-29T01:29:59Z")) && !night.open(at("2026-03-29T01:30:00Z")));
    assert!(!night.open(at("2026-10-24T23:29:59Z")) && night.open(at("2026-10-24T23:30:00Z")));
    assert!(night.open(at("2026-10-25T02:29:59Z")) && !night.open(at("2026-10-25T02:30:00Z")));

    // An hour that does not exist is no window, and the next day's is the next.
    let gap = windows(&["daily 02:00-03:00 Europe/Berlin"]);
    for minute in 0..180 {
        let moment = Millis(at("2026-03-29T00:00:00Z").0 + minute * 60_000);
        assert!(!gap.open(moment), "{moment}");
    }
    assert_eq!(gap.next_open(at("2026-03-28T12:00:00Z")), Some(at("2026-03-30T00:00:00Z")));
    // Only its end does not exist: it ends when the clocks jump over it.
    let end = windows(&["daily 01:00-02:30 Europe/Berlin"]);
    assert!(end.open(at("2026-03-29T00:59:59Z")) && !end.open(at("2026-03-29T01:30:00Z")));
    // The end comes twice: the first counts.
    assert!(end.open(at("2026-10-25T00:29:59Z")) && !end.open(at("2026-10-25T00:30:00Z")));
    assert!(!end.open(at("2026-10-25T01:15:00Z")));
}

#[test]
fn several_windows_add_up_and_none_is_always() {
    let both = windows(&["Sat,Sun 00:00-24:00 UTC", "Mon-Fri 02:00-03:00 Asia/Kolkata"]);
    assert!(both.open(at("2026-11-21T12:00:00Z")) && both.open(at("2026-11-23T20:45:00Z")));
    assert!(!both.open(at("2026-11-23T22:00:00Z")));
    assert_eq!(both.next_open(at("2026-11-23T22:00:00Z")), Some(at("2026-11-24T20:30:00Z")));
    assert!(Windows::default().open(Millis(0)) && Windows::default().next_open(Millis(0)).is_none());
    let wrapped: Window = "Sat-Mon,Wed 01:00-02:00 UTC".parse().unwrap();
    assert_eq!(wrapped.to_string(), "mon,wed,sat,sun 01:00-02:00 UTC");
}

#[test]
fn what_is_no_window_is_refused_by_name() {
    for (text, wrong) in [
        ("", "must be DAYS"),
        ("Mon 01:00-02:00", "must be DAYS"),
        ("Mon 01:00 UTC", "must be DAYS"),
        ("Foo 01:00-02:00 UTC", "days \"Foo\""),
        ("Mon- 01:00-02:00 UTC", "days \"Mon-\""),
        ("Mon 1:00-02:00 UTC", "time \"1:00\""),
        ("Mon 24:00-02:00 UTC", "time \"24:00\""),
        ("Mon 01:00-25:00 UTC", "time \"25:00\""),
        ("Mon 01:60-02:00 UTC", "time \"01:60\""),
        ("Mon +1:00-02:00 UTC", "time \"+1:00\""),
        ("Mon 01:00-01:00 UTC", "ends when it begins"),
        ("Mon 01:00-02:00 Mars/Olympus", "zone \"Mars/Olympus\""),
    ] {
        let error = Windows::parse(&[text]).unwrap_err().to_string();
        assert!(error.contains(wrong), "{text:?}: {error}");
    }
    assert_eq!(Windows::parse(&["daily 01:00-02:00 UTC"; 33]).unwrap_err(), InvalidWindow::Many);
}

#[test]
fn zones_are_known_where_the_system_knows_none() {
    assert!(jiff::tz::TimeZoneDatabase::bundled().get("Europe/Berlin").is_ok());
}

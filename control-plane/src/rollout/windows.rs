//! Maintenance windows: "Mon-Fri 01:00-05:00 Europe/Berlin".
//!
//! A window is by the clock on the wall of its zone. It belongs to the day on which it begins, so "Fri 22:00-02:00" ends on Saturday.
//! Where clocks are put forward, a time that does not exist is as much later as they are put forward; where they are put back, a
//! window begins and ends with the first of the two.

use std::{fmt, str::FromStr};

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, Time, Weekday},
    tz::TimeZone,
};

use crate::domain::Millis;

/// Most windows of a roll-out.
pub const MOST_WINDOWS: usize = 32;

/// The next opening is looked for this many days ahead: a week, and one more for a day without the hour.
const DAYS_AHEAD: i64 = 15;

const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// The text is no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWindow {
    /// It has another form.
    #[error("window {0:?} must be DAYS HH:MM-HH:MM ZONE, such as \"Mon-Fri 01:00-05:00 Europe/Berlin\"")]
    Form(String),
    /// No such days.
    #[error("days {0:?} must be \"daily\" or days such as \"Mon-Fri\" or \"Sat,Sun\"")]
    Days(String),
    /// No such time.
    #[error("time {0:?} must be HH:MM, from 00:00 to 24:00")]
    Time(String),
    /// It would never be open, or always.
    #[error("window {0:?} ends when it begins; a whole day is 00:00-24:00")]
    Empty(String),
    /// No such zone.
    #[error("time zone {0:?} is not known; zones are called as \"Europe/Berlin\" or \"UTC\"")]
    Zone(String),
    /// Too many.
    #[error("a roll-out has at most {MOST_WINDOWS} windows")]
    Many,
}

/// One window, every week.
#[derive(Clone, Debug)]
struct Window {
    /// By days since Monday.
    days: [bool; 7],
    start: Time,
    /// `None`: midnight at the end of the day.
    end: Option<Time>,
    zone: TimeZone,
}

/// When gateways may be switched. None: always.
#[derive(Clone, Debug, Default)]
pub struct Windows(Vec<Window>);

impl Windows {
    /// Reads windows.
    ///
    /// # Errors
    /// Names the first that is none.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, InvalidWindow> {
        if texts.len() > MOST_WINDOWS {
            return Err(InvalidWindow::Many);
        }
        texts.iter().map(|text| text.as_ref().parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a gateway may be switched now.
    pub fn open(&self, now: Millis) -> bool {
        self.0.is_empty() || instant(now).is_some_and(|now| self.0.iter().any(|window| window.open(now)))
    }

    /// When the next one opens; `None` if there is none within two weeks.
    pub fn next_open(&self, now: Millis) -> Option<Millis> {
        let now = instant(now)?;
        let opening = self.0.iter().filter_map(|window| window.next_open(now)).min()?;
        Some(Millis(opening.as_millisecond()))
    }
}

fn instant(now: Millis) -> Option<Timestamp> {
    Timestamp::from_millisecond(now.0).ok()
}

impl Window {
    fn open(&self, now: Timestamp) -> bool {
        let today = now.to_zoned(self.zone.clone()).date();
        // Yesterday's may reach over midnight.
        [today.yesterday().ok(), Some(today)]
            .into_iter()
            .flatten()
            .filter_map(|day| self.on(day))
            .any(|(start, end)| (start..end).contains(&now))
    }

    fn next_open(&self, now: Timestamp) -> Option<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        (0..=DAYS_AHEAD)
            .filter_map(|ahead| self.on(today.checked_add(ahead.days()).ok()?))
            .find_map(|(start, end)| (start > now && end > start).then_some(start))
    }

    /// From when to when it is open on a day, if it is.
    fn on(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.days[usize::try_from(day.weekday().to_monday_zero_offset()).ok()?] {
            return None;
        }
        let (last, end) = match self.end {
            Some(end) if end > self.start => (day, end),
            Some(end) => (day.tomorrow().ok()?, end),
            None => (day.tomorrow().ok()?, Time::midnight()),
        };
        // Times that do not exist are put after the gap, those that come twice are taken the first time.
        let moment =
            |day: Date, time| Some(day.to_datetime(time).to_zoned(self.zone.clone()).ok()?.timestamp());
        Some((moment(day, self.start)?, moment(last, end)?))
    }
}

impl FromStr for Window {
    type Err = InvalidWindow;

    fn from_str(text: &str) -> Result<Self, InvalidWindow> {
        let short: String = text.chars().take(128).collect();
        let words: Vec<_> = text.split_whitespace().collect();
        let &[days_, times, zone] = words.as_slice() else { return Err(InvalidWindow::Form(short)) };
        let (start, end) = times.split_once('-').ok_or_else(|| InvalidWindow::Form(short.clone()))?;
        let start = time(start)?.ok_or_else(|| InvalidWindow::Time(start.to_owned()))?;
        let end = time(end)?;
        if end == Some(start) {
            return Err(InvalidWindow::Empty(short));
        }
        let zone = TimeZone::get(zone).map_err(|_| InvalidWindow::Zone(zone.chars().take(64).collect()))?;
        Ok(Self { days: days(days_)?, start, end, zone })
    }
}

/// HH:MM; `None` for 24:00.
fn time(text: &str) -> Result<Option<Time>, InvalidWindow> {
    let wrong = || InvalidWindow::Time(text.chars().take(16).collect());
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    let number = |digits: &str| {
        let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        if plain { digits.parse::<i8>().map_err(|_| wrong()) } else { Err(wrong()) }
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    if (hour, minute) == (24, 0) {
        return Ok(None);
    }
    Time::new(hour, minute, 0, 0).map(Some).map_err(|_| wrong())
}

/// "daily", "Mon-Fri", "Sat,Sun", "Fri-Mon,Wed".
fn days(text: &str) -> Result<[bool; 7], InvalidWindow> {
    let wrong = || InvalidWindow::Days(text.chars().take(64).collect());
    if text.eq_ignore_ascii_case("daily") {
        return Ok([true; 7]);
    }
    let day = |name: &str| {
        let position = DAYS.iter().position(|(known, _)| name.eq_ignore_ascii_case(known));
        position.ok_or_else(wrong)
    };
    let mut open = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        loop {
            open[at] = true;
            if at == last {
                break;
            }
            at = (at + 1) % 7;
        }
    }
    Ok(open)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = DAYS.iter().zip(self.days).filter(|(_, open)| *open).map(|((name, _), _)| *name);
        let end = self.end.map_or_else(|| "24:00".to_owned(), |end| end.strftime("%H:%M").to_string());
        let zone = self.zone.iana_name().unwrap_or("UTC");
        let start = self.start.strftime("%H:%M");
        write!(f, "{} {start}-{end} {zone}", open.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests;

//! How long a result holds.

use base::Timestamp;
use time::{Date, Duration, Month, OffsetDateTime};

/// Lifetimes that rules may name.
pub const KNOWN: [&str; 5] = ["day", "week", "month", "quarter", "year"];

/// The first moment at which a result of `at` holds no more: always a midnight (UTC), so that a run that is a little late
/// breaks nothing. Without a lifetime it is a week; one that is not [`KNOWN`] is taken for a week, too (rules with such are
/// not taken).
pub fn end(at: Timestamp, lifetime: Option<&str>) -> Timestamp {
    let Ok(moment) = OffsetDateTime::from_unix_timestamp(at.as_secs()) else { return at };
    let date = moment.date();
    let (year, month) = (date.year(), u8::from(date.month()));
    let end = match lifetime {
        Some("day") => date.checked_add(Duration::days(2)),
        Some("month") => first(year, month + 2),
        Some("quarter") => first(year, ((month - 1) / 3) * 3 + 7),
        Some("year") => first(year + 1, month + 2),
        // Until the Monday after next.
        _ => date.checked_add(Duration::days(14 - i64::from(date.weekday().number_days_from_monday()))),
    };
    end.map_or(at, |d| Timestamp::from_secs(d.midnight().assume_utc().unix_timestamp()))
}

/// The first day of a month; months beyond December are those of the next year.
fn first(year: i32, month: u8) -> Option<Date> {
    let (year, month) = if month > 12 { (year + 1, month - 12) } else { (year, month) };
    Date::from_calendar_date(year, Month::try_from(month).ok()?, 1).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn each_lifetime_ends_at_the_midnight_of_the_standard() {
        let cases = [
            ("2026-11-22T23:59:59", "day", "2026-11-24"),
            ("2026-11-22T23:59:59", "week", "2026-11-30"), // a Sunday
            ("2026-11-23T00:00:00", "week", "2026-12-07"), // a Monday
            ("2026-12-31T10:00:00", "week", "2027-01-11"),
            ("2026-01-31T10:00:00", "month", "2026-03-01"),
            ("2026-10-01T10:00:00", "month", "2026-12-01"),
            ("2026-11-30T10:00:00", "month", "2027-01-01"),
            ("2026-12-01T10:00:00", "month", "2027-02-01"),
            ("2026-01-01T10:00:00", "quarter", "2026-07-01"),
            ("2026-03-31T10:00:00", "quarter", "2026-07-01"),
            ("2026-04-01T10:00:00", "quarter", "2026-10-01"),
            ("2026-07-01T10:00:00", "quarter", "2027-01-01"),
            ("2026-10-01T10:00:00", "quarter", "2027-04-01"),
            ("2026-12-31T10:00:00", "quarter", "2027-04-01"),
            ("2026-10-15T10:00:00", "year", "2027-12-01"),
            ("2026-11-15T10:00:00", "year", "2028-01-01"),
            ("2026-12-15T10:00:00", "year", "2028-02-01"),
        ];
        for (at, lifetime, expected) in cases {
            let found = end(Timestamp::parse(at).unwrap(), Some(lifetime));
            assert_eq!(found, Timestamp::parse(expected).unwrap(), "{lifetime} from {at}");
        }
        let at = Timestamp::parse("2026-11-22T10:00:00").unwrap();
        assert_eq!(end(at, None), end(at, Some("week")));
    }
}

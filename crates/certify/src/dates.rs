//! Dates as images carry them.

use time::{Date, Month, PrimitiveDateTime, Time};

/// Seconds since 1970 of `YYYY-MM-DDTHH:MM:SSZ`; nothing else is that form.
pub(crate) fn strict(text: &str) -> Option<i64> {
    let body = text.strip_suffix('Z')?;
    let (day, clock) = body.split_once('T')?;
    seconds(day, Some(clock), 3)
}

/// Seconds since 1970 of the strict form, `YYYY-MM-DD`, `YYYY-MM-DD hh:mm` or `YYYY-MM-DD hh:mm:ss`.
pub(crate) fn any(text: &str) -> Option<i64> {
    if let Some(found) = strict(text) {
        return Some(found);
    }
    match text.split_once(' ') {
        None => seconds(text, None, 0),
        Some((day, clock)) => {
            let clock = clock.trim_start();
            seconds(day, Some(clock), 3).or_else(|| seconds(day, Some(clock), 2))
        }
    }
}

fn seconds(day: &str, clock: Option<&str>, parts: usize) -> Option<i64> {
    let fields: Vec<&str> = day.split('-').collect();
    let [year, month, day] = fields.as_slice() else { return None };
    if year.len() != 4 || !year.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let month = Month::try_from(u8::try_from(short(month)?).ok()?).ok()?;
    let date = Date::from_calendar_date(year.parse().ok()?, month, u8::try_from(short(day)?).ok()?).ok()?;
    let mut at = (0, 0, 0);
    if let Some(clock) = clock {
        let fields: Vec<&str> = clock.split(':').collect();
        if fields.len() != parts {
            return None;
        }
        let mut numbers = fields.iter().map(|f| short(f));
        at = (numbers.next()??, numbers.next()??, numbers.next().unwrap_or(Some(0))?);
        if at.0 > 23 || at.1 > 59 || at.2 > 61 {
            return None;
        }
    }
    let midnight = PrimitiveDateTime::new(date, Time::MIDNIGHT).assume_utc().unix_timestamp();
    Some(midnight + i64::from(at.0) * 3600 + i64::from(at.1) * 60 + i64::from(at.2)).filter(|s| *s != 0)
}

/// One or two digits.
fn short(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(strict("2026-11-21T05:00:01Z"), Some(1_795_237_201));
        for wrong in
            ["2026-11-21T05:00:01.5Z", "2026-11-21 05:00:01", "2026-11-21T05:00Z", "2026-02-30T00:00:00Z", ""]
        {
            assert_eq!(strict(wrong), None, "{wrong}");
        }
        for right in
            ["2026-11-21", "2026-11-21 05:00", "2026-11-21 05:00:01", "2026-11-21T05:00:01Z", "2026-1-5"]
        {
            assert!(any(right).is_some(), "{right}");
        }
        for wrong in ["20261121", "2026-11", "soon", "2026-11-21 25:00", "2026-13-01", "1970-01-01"] {
            assert_eq!(any(wrong), None, "{wrong}");
        }
    }
}

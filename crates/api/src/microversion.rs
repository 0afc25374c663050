//! Microversions (API SIG guideline "Microversion Specification").

use std::fmt;
use std::str::FromStr;

/// A microversion, e.g. `2.96`. Compares as numbers: 2.9 < 2.10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mv(pub u16, pub u16);

impl Mv {
    /// Above every real microversion.
    pub const MAX: Mv = Mv(u16::MAX, u16::MAX);
    /// Below every real microversion.
    pub const MIN: Mv = Mv(0, 0);
}

impl fmt::Display for Mv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for Mv {
    type Err = base::Error;
    fn from_str(text: &str) -> Result<Self, base::Error> {
        let bad = || {
            base::Error::bad_request(format!(
                "API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum."
            ))
        };
        let number = |part: &str| -> Option<u16> {
            let plain =
                part.bytes().all(|b| b.is_ascii_digit()) && !(part.len() > 1 && part.starts_with('0'));
            if plain { part.parse().ok() } else { None }
        };
        let (major, minor) = text.split_once('.').ok_or_else(bad)?;
        match (number(major), number(minor)) {
            (Some(major), Some(minor)) if major > 0 => Ok(Mv(major, minor)),
            _ => Err(bad()),
        }
    }
}

/// The microversions a service speaks, and the headers that ask for one.
#[derive(Debug, Clone, Copy)]
pub struct MvRange {
    /// The word before the number in `OpenStack-API-Version`: `compute`, `volume`, `placement`.
    pub service: &'static str,
    /// Lowest.
    pub min: Mv,
    /// Highest.
    pub max: Mv,
    /// The older header with only a number, if the service has one.
    pub legacy_header: Option<&'static str>,
}

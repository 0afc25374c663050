//! Names: host names from server names, SCS flavor names (scs-0100-v3), device names.

use base::{Error, Result};

/// The host name Nova makes of a server's name; `Server-<id>` where nothing is left of it.
pub fn hostname(name: &str, id: base::ServerId) -> String {
    let mut text: String = name
        .chars()
        .filter_map(|c| match c {
            ' ' | '_' | '.' => Some('-'),
            c if c.is_ascii_alphanumeric() || c == '-' => Some(c.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    text = text.trim_matches(['-', '.']).to_owned();
    text.truncate(63);
    let text = text.trim_end_matches('-');
    if text.is_empty() { format!("server-{id}") } else { text.to_owned() }
}

/// The next free `/dev/vdX`.
pub fn device(taken: &[&str]) -> String {
    (b'a'..=b'z')
        .map(|c| format!("/dev/vd{}", char::from(c)))
        .chain(
            (b'a'..=b'z').flat_map(|a| {
                (b'a'..=b'z').map(move |b| format!("/dev/vd{}{}", char::from(a), char::from(b)))
            }),
        )
        .find(|d| !taken.contains(&d.as_str()))
        .unwrap_or_default()
}

struct Reader<'a>(&'a str);

impl Reader<'_> {
    fn eat(&mut self, text: &str) -> bool {
        match self.0.strip_prefix(text) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn one_of(&mut self, letters: &str) -> Option<char> {
        let c = self.0.chars().next().filter(|c| letters.contains(*c))?;
        self.0 = &self.0[c.len_utf8()..];
        Some(c)
    }

    fn number(&mut self) -> Option<&str> {
        let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
        let (digits, rest) = self.0.split_at(end);
        if digits.is_empty() || digits.starts_with('0') && digits.len() > 1 {
            return None;
        }
        self.0 = rest;
        Some(digits)
    }
}

/// What an SCS flavor name promises: vCPUs, RAM in tenths of GiB, disk in GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// vCPUs.
    pub vcpus: u32,
    /// RAM in tenths of GiB.
    pub ram_tenths: u64,
    /// Disk in GiB.
    pub disk: u64,
}

/// Reads a name that begins with `SCS-`; other names are free and promise nothing.
///
/// # Errors
/// `BadRequest` where it is not of the grammar, or has a disk part without a size (which breaks the SCS check).
pub fn scs(name: &str) -> Result<Option<Promise>> {
    let Some(rest) = name.strip_prefix("SCS-") else { return Ok(None) };
    parse(rest).map(Some).ok_or_else(|| {
        Error::bad_request(format!(
            "Invalid input for field/attribute name. Value: {name}. A name that begins with 'SCS-' must follow scs-0100-v3 and give the size of its disk."
        ))
    })
}

fn parse(text: &str) -> Option<Promise> {
    let mut r = Reader(text);
    let vcpus: u32 = r.number()?.parse().ok().filter(|n| *n > 0)?;
    r.one_of("LVTC")?;
    r.eat("i");
    r.eat("-").then_some(())?;
    let whole: u64 = r.number()?.parse().ok()?;
    let half = r.eat(".5");
    if !half {
        r.eat(".0");
    }
    let ram_tenths = whole.checked_mul(10)? + if half { 5 } else { 0 };
    if ram_tenths == 0 {
        return None;
    }
    r.eat("u");
    r.eat("o");
    let mut disk = 0;
    if r.eat("-") {
        let first: u64 = r.number()?.parse().ok()?;
        disk = if r.eat("x") { r.number()?.parse().ok()? } else { first };
        if disk == 0 {
            return None;
        }
        r.one_of("nhsp");
    }
    tail(&mut r).then_some(Promise { vcpus, ram_tenths, disk })
}

/// The parts after the disk.
fn tail(r: &mut Reader<'_>) -> bool {
    let _ = ["_kvm", "_chy", "_xen", "_vmw", "_hyv", "_bms"].iter().any(|h| r.eat(h));
    r.eat("_hwv");
    let before = r.0;
    if r.eat("_") {
        match r.one_of("izar") {
            Some(arch) => {
                let most = match arch {
                    'i' | 'z' => 6,
                    'a' => 5,
                    _ => 0,
                };
                if let Some(c) = r.one_of("0123456789")
                    && c.to_digit(10).is_none_or(|n| n > most)
                {
                    return false;
                }
                let _ = ["hhh", "hh", "h"].iter().any(|h| r.eat(h));
            }
            None => r.0 = before,
        }
    }
    let before = r.0;
    if r.eat("_") {
        match r.one_of("Gg") {
            Some(_) if !gpu(r) => return false,
            Some(_) => {}
            None => r.0 = before,
        }
    }
    r.eat("_ib");
    r.0.is_empty()
}

fn gpu(r: &mut Reader<'_>) -> bool {
    let generations: &[&str] = match r.one_of("NAI") {
        Some('N') => &["f", "k", "m", "p", "v", "t", "a", "l", "g", "b", "u"],
        Some('A') => &["0.4", "0.5", "1.1", "1", "2.1", "2", "3.1", "3.5", "3", "4.1", "4", "5.1"],
        Some(_) => &["0.95", "0.9", "1", "2", "3", "4"],
        None => return false,
    };
    let _ = generations.iter().any(|g| r.eat(g));
    for _ in 0..2 {
        if r.eat("-") {
            if r.number().is_none() {
                return false;
            }
            let _ = ["hh", "h"].iter().any(|h| r.eat(h));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scs_names() {
        for good in [
            "SCS-2V-4",
            "SCS-1V-0.5",
            "SCS-1L-1-5",
            "SCS-2V-4-20s",
            "SCS-2C-4-3x10s_bms_z3",
            "SCS-16T-64-200s_GNa-72-24_ib",
            "SCS-4V-16_kvm_hwv",
            "SCS-1Li-1uo",
            "SCS-8C-32_i4hh_GNl-142hh-48",
        ] {
            assert!(scs(good).unwrap().is_some(), "{good}");
        }
        for bad in [
            "SCS-2-4",
            "SCS-1V-1.3",
            "SCS-4V-16_hwv_kvm",
            "SCS-2V-4-1.5n",
            "SCS-2v-4",
            "SCS-8V-32-n",
            "SCS-2C-4-",
            "SCS-",
            "SCS-2V-4_i7",
            "SCS-0V-1",
            "SCS-2V-4 ",
            "SCS-2V:4",
        ] {
            assert!(scs(bad).is_err(), "{bad}");
        }
        assert_eq!(scs("m1.small").unwrap(), None);
        assert_eq!(scs("SCS-2V-4.5-20").unwrap(), Some(Promise { vcpus: 2, ram_tenths: 45, disk: 20 }));
    }

    #[test]
    fn host_names() {
        let id = base::ServerId::random(&base::Entropy::seeded(0));
        assert_eq!(hostname("My Server_1.example", id), "my-server-1-example");
        assert_eq!(hostname("日本", id), format!("server-{id}"));
        assert_eq!(device(&["/dev/vda", "/dev/vdb"]), "/dev/vdc");
    }
}
